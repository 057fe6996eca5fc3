package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kubemq-io/kubemq-go"
)

func init() {
	for id, scenario := range map[string]func(*world){
		"events_send":       eventsSend,
		"events_stream":     eventsStream,
		"events_fan_out":    eventsFanOut,
		"events_groups":     eventsGroups,
		"events_group_left": eventsGroupLeft,
		"events_wildcards":  eventsWildcards,
		"events_large":      eventsLarge,
		"events_reconnect":  func(w *world) { eventsReconnect(w, "kill") },
		"events_restart":    func(w *world) { eventsReconnect(w, "stop") },
	} {
		scenarios[id] = scenario
	}
}

func (w *world) subscribe(client *kubemq.Client, channel, group string) *inbox {
	ctx, leave := context.WithCancel(w.ctx)
	failures := make(chan error, 10)
	events, err := client.SubscribeToEvents(ctx, channel, group, failures)
	must(err)
	i := &inbox{leave: leave}
	go collect(ctx, events, failures, i, func(e *kubemq.Event) got {
		return got{id: e.Id, channel: e.Channel, metadata: e.Metadata, body: string(e.Body), tags: e.Tags}
	})
	return i
}

func (w *world) publish(client *kubemq.Client, channel string, bodies ...string) {
	for _, body := range bodies {
		must(client.NewEvent().SetChannel(channel).SetBody([]byte(body)).Send(w.ctx))
	}
}

func eventsSend(w *world) {
	client := w.client()
	defer client.Close()
	i := w.subscribe(client, w.queue, "")
	w.ready(client, w.queue, i)
	must(client.NewEvent().SetId("my-id").SetChannel(w.queue).SetMetadata("metadata").SetBody([]byte("body")).
		AddTag("key", "value").Send(w.ctx))
	i.has("body")
	one := i.all()[0]
	check(one.id == "my-id" && one.metadata == "metadata" && one.tags["key"] == "value" && one.channel == w.queue, "%+v", one)
}

func eventsStream(w *world) {
	client := w.client()
	defer client.Close()
	i := w.subscribe(client, w.queue, "")
	w.ready(client, w.queue, i)
	events, failures := make(chan *kubemq.Event), make(chan error, 1)
	go client.StreamEvents(w.ctx, events, failures)
	for _, body := range texts(1, 100) {
		events <- client.NewEvent().SetChannel(w.queue).SetBody([]byte(body))
	}
	i.has(texts(1, 100)...)
	check(len(failures) == 0, "an error over the stream")
}

func eventsFanOut(w *world) {
	client := w.client()
	defer client.Close()
	first, second := w.subscribe(client, w.queue, ""), w.subscribe(client, w.queue, "")
	w.ready(client, w.queue, first, second)
	w.publish(client, w.queue, texts(1, 20)...)
	first.has(texts(1, 20)...)
	second.has(texts(1, 20)...)
}

func eventsGroups(w *world) {
	client := w.client()
	defer client.Close()
	one, two := w.subscribe(client, w.queue, "group"), w.subscribe(client, w.queue, "group")
	other, single := w.subscribe(client, w.queue, "other"), w.subscribe(client, w.queue, "")
	w.ready(client, w.queue, one, two, other, single)
	w.publish(client, w.queue, texts(1, 60)...)
	single.has(texts(1, 60)...)
	other.has(texts(1, 60)...)
	together(texts(1, 60), one, two)
}

func eventsGroupLeft(w *world) {
	client := w.client()
	defer client.Close()
	stays, leaves := w.subscribe(client, w.queue, "group"), w.subscribe(client, w.queue, "group")
	w.ready(client, w.queue, stays, leaves)
	leaves.leave()
	// Until the server has noticed, some may still go to who left.
	round := 0
	until("a round that reaches the one who stays", func() bool {
		round++
		var bodies []string
		for _, number := range texts(1, 20) {
			bodies = append(bodies, fmt.Sprintf("%d-%s", round, number))
		}
		w.publish(client, w.queue, bodies...)
		for range 20 {
			all := stays.bodies()
			if len(all) >= 20 && slices.Equal(all[len(all)-20:], bodies) {
				return true
			}
			time.Sleep(20 * time.Millisecond)
		}
		return false
	})
}

func eventsWildcards(w *world) {
	client := w.client()
	defer client.Close()
	star, rest := w.subscribe(client, w.queue+".*", ""), w.subscribe(client, w.queue+".>", "")
	w.ready(client, w.queue+".p", star, rest)
	w.publish(client, w.queue+".a.b", "deep")
	w.publish(client, w.queue+".a", "flat")
	rest.has("deep", "flat")
	star.has("flat")
	check(rest.all()[0].channel == w.queue+".a.b" && star.all()[0].channel == w.queue+".a", "%+v", rest.all())
}

func eventsLarge(w *world) {
	client := w.client()
	defer client.Close()
	i := w.subscribe(client, w.queue, "")
	w.ready(client, w.queue, i)
	w.publish(client, w.queue, large)
	until("the event", func() bool { return len(i.all()) > 0 })
	check(i.all()[0].body == large, "the body changed")
}

func eventsReconnect(w *world, how string) {
	client, sender := w.named("go1"), w.client()
	defer client.Close()
	defer sender.Close()
	i := w.subscribe(client, w.queue, "")
	w.ready(sender, w.queue, i)
	w.again(how)
	i.lock.Lock()
	i.probes = 0
	i.lock.Unlock()
	w.ready(sender, w.queue, i)
	w.publish(sender, w.queue, texts(1, 10)...)
	i.has(texts(1, 10)...)
}
