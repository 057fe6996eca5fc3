package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kubemq-io/kubemq-go"
)

func init() {
	for id, scenario := range map[string]func(*world){
		"store_send":           storeSend,
		"store_stream":         storeStream,
		"store_new_only":       storeNewOnly,
		"store_first":          func(w *world) { storeFrom(w, kubemq.StartFromFirstEvent(), 1) },
		"store_last":           func(w *world) { storeFrom(w, kubemq.StartFromLastEvent(), 10) },
		"store_sequence":       func(w *world) { storeFrom(w, kubemq.StartFromSequence(4), 4) },
		"store_sequence_ahead": storeSequenceAhead,
		"store_time":           storeTime,
		"store_delta":          storeDelta,
		"store_groups":         storeGroups,
		"store_resume":         storeResume,
		"store_closed":         storeClosed,
		"store_wildcards":      storeWildcards,
		"store_reconnect":      func(w *world) { storeReconnect(w, "kill") },
		"store_restart":        func(w *world) { storeReconnect(w, "stop") },
	} {
		scenarios[id] = scenario
	}
}

func (w *world) follow(client *kubemq.Client, channel, group string, start kubemq.SubscriptionOption) *inbox {
	ctx, leave := context.WithCancel(w.ctx)
	failures := make(chan error, 10)
	events, err := client.SubscribeToEventsStore(ctx, channel, group, failures, start)
	must(err)
	i := &inbox{leave: leave}
	go collect(ctx, events, failures, i, func(e *kubemq.EventStoreReceive) got {
		return got{id: e.Id, channel: e.Channel, metadata: e.Metadata, body: string(e.Body), tags: e.Tags,
			sequence: e.Sequence, timestamp: e.Timestamp}
	})
	return i
}

func (w *world) store(client *kubemq.Client, channel string, bodies ...string) {
	for _, body := range bodies {
		result, err := client.NewEventStore().SetChannel(channel).SetBody([]byte(body)).Send(w.ctx)
		must(err)
		check(result.Sent && result.Err == nil, "%+v", result)
	}
}

func storeSend(w *world) {
	client := w.client()
	defer client.Close()
	result, err := client.NewEventStore().SetId("my-id").SetChannel(w.queue).SetMetadata("metadata").
		SetBody([]byte("body")).AddTag("key", "value").Send(w.ctx)
	must(err)
	check(result.Sent && result.Id == "my-id", "%+v", result)
	i := w.follow(client, w.queue, "", kubemq.StartFromFirstEvent())
	i.has("body")
	one := i.all()[0]
	check(one.id == "my-id" && one.metadata == "metadata" && one.tags["key"] == "value" && one.channel == w.queue, "%+v", one)
	check(one.sequence == 1 && time.Since(one.timestamp).Abs() < time.Minute, "%+v", one)
}

func storeStream(w *world) {
	client := w.client()
	defer client.Close()
	events, results, failures := make(chan *kubemq.EventStore), make(chan *kubemq.EventStoreResult, 100), make(chan error, 1)
	go client.StreamEventsStore(w.ctx, events, results, failures)
	for _, body := range texts(1, 100) {
		events <- client.NewEventStore().SetId("id-" + body).SetChannel(w.queue).SetBody([]byte(body))
	}
	for _, body := range texts(1, 100) {
		select {
		case result := <-results:
			check(result.Sent && result.Id == "id-"+body, "%+v", result)
		case err := <-failures:
			must(err)
		case <-time.After(soon):
			check(false, "no result for %s", body)
		}
	}
	w.follow(client, w.queue, "", kubemq.StartFromFirstEvent()).has(texts(1, 100)...)
}

// firstNew stores one message after the other until the subscriber gets one.
func (w *world) firstNew(client *kubemq.Client, i *inbox) got {
	number := 0
	until("a new event", func() bool {
		number++
		w.store(client, w.queue, fmt.Sprintf("new %d", number))
		return len(i.all()) > 0
	})
	return i.all()[0]
}

func storeNewOnly(w *world) {
	client := w.client()
	defer client.Close()
	w.store(client, w.queue, texts(1, 3)...)
	first := w.firstNew(client, w.follow(client, w.queue, "", kubemq.StartFromNewEvents()))
	check(strings.HasPrefix(first.body, "new") && first.sequence > 3, "%+v", first)
}

// storeFrom stores ten, expects all from number first on, and then what is stored afterwards.
func storeFrom(w *world, start kubemq.SubscriptionOption, first int) {
	client := w.client()
	defer client.Close()
	w.store(client, w.queue, texts(1, 10)...)
	i := w.follow(client, w.queue, "", start)
	i.has(texts(first, 10)...)
	w.store(client, w.queue, texts(11, 12)...)
	i.has(texts(first, 12)...)
	for index, one := range i.all() {
		check(one.sequence == uint64(first+index), "%+v", one)
	}
}

func storeSequenceAhead(w *world) {
	client := w.client()
	defer client.Close()
	w.store(client, w.queue, texts(1, 3)...)
	i := w.follow(client, w.queue, "", kubemq.StartFromSequence(4))
	first := w.firstNew(client, i)
	check(first.body == "new 1" && first.sequence == 4, "%+v", first)
}

func storeTime(w *world) {
	client := w.client()
	defer client.Close()
	w.store(client, w.queue, texts(1, 5)...)
	time.Sleep(2500 * time.Millisecond)
	moment := time.Now().Add(-time.Second)
	w.store(client, w.queue, texts(6, 10)...)
	w.follow(client, w.queue, "", kubemq.StartFromTime(moment)).has(texts(6, 10)...)
}

func storeDelta(w *world) {
	client := w.client()
	defer client.Close()
	w.store(client, w.queue, texts(1, 5)...)
	time.Sleep(5 * time.Second)
	w.store(client, w.queue, texts(6, 10)...)
	w.follow(client, w.queue, "", kubemq.StartFromTimeDelta(3*time.Second)).has(texts(6, 10)...)
}

func storeGroups(w *world) {
	one, two := w.named("one"), w.named("two")
	defer one.Close()
	defer two.Close()
	first := w.follow(one, w.queue, "group", kubemq.StartFromFirstEvent())
	second := w.follow(two, w.queue, "group", kubemq.StartFromFirstEvent())
	// Both are members before it counts.
	until("both members", func() bool {
		w.store(one, w.queue, probe)
		return first.probed() && second.probed()
	})
	w.store(one, w.queue, texts(1, 100)...)
	together(texts(1, 100), first, second)
	for _, member := range []*inbox{first, second} {
		check(slices.IsSortedFunc(member.all(), func(a, b got) int { return int(a.sequence) - int(b.sequence) }), "not in order")
	}
}

func storeResume(w *world) {
	sender, client := w.client(), w.named("resumes")
	defer sender.Close()
	defer client.Close()
	w.store(sender, w.queue, texts(1, 5)...)
	first := w.follow(client, w.queue, "", kubemq.StartFromFirstEvent())
	first.has(texts(1, 5)...)
	first.leave()
	w.store(sender, w.queue, texts(6, 8)...)
	w.follow(client, w.queue, "", kubemq.StartFromFirstEvent()).has(texts(6, 8)...)
}

func storeClosed(w *world) {
	sender, client := w.client(), w.named("closes")
	defer sender.Close()
	w.store(sender, w.queue, texts(1, 5)...)
	w.follow(client, w.queue, "", kubemq.StartFromFirstEvent()).has(texts(1, 5)...)
	must(client.Close())
	w.store(sender, w.queue, texts(6, 8)...)
	client = w.named("closes")
	defer client.Close()
	i := w.follow(client, w.queue, "", kubemq.StartFromFirstEvent())
	until("the last event", func() bool { return slices.Contains(i.bodies(), "8") })
	bodies := i.bodies()
	check(len(bodies) >= 3 && slices.Equal(bodies, texts(9-len(bodies), 8)), "%v", bodies)
}

func storeWildcards(w *world) {
	client := w.client()
	defer client.Close()
	i := w.follow(client, w.queue+".*", "", kubemq.StartFromFirstEvent())
	until("the refusal", func() bool { return len(i.errors()) > 0 })
	check(strings.Contains(i.errors()[0].Error(), "Error 107"), "%v", i.errors())
}

func storeReconnect(w *world, how string) {
	client, sender := w.named("go1"), w.client()
	defer client.Close()
	defer sender.Close()
	i := w.follow(client, w.queue, "", kubemq.StartFromFirstEvent())
	w.store(sender, w.queue, texts(1, 5)...)
	i.has(texts(1, 5)...)
	w.again(how)
	until("the connection", func() bool {
		_, err := sender.Ping(w.ctx)
		return err == nil
	})
	w.store(sender, w.queue, texts(6, 10)...)
	until("the last event", func() bool { return slices.Contains(i.bodies(), "10") })
	// What was on its way when the server ended may come twice.
	check(slices.Equal(distinct(i.bodies()), texts(1, 10)), "%v", i.bodies())
}
