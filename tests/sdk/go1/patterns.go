package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubemq-io/kubemq-go"
)

func init() {
	for id, scenario := range map[string]func(*world){
		"events_send":          eventsSend,
		"events_stream":        eventsStream,
		"events_fan_out":       eventsFanOut,
		"events_groups":        eventsGroups,
		"events_group_left":    eventsGroupLeft,
		"events_wildcards":     eventsWildcards,
		"events_large":         eventsLarge,
		"events_reconnect":     func(w *world) { eventsReconnect(w, "kill") },
		"events_restart":       func(w *world) { eventsReconnect(w, "stop") },
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
		"command_answer":       commandAnswer,
		"command_error":        commandError,
		"command_timeout":      commandTimeout,
		"command_groups":       commandGroups,
		"command_concurrent":   commandConcurrent,
		"command_reconnect":    commandReconnect,
		"query_answer":         queryAnswer,
		"query_error":          queryError,
		"query_timeout":        queryTimeout,
		"query_cache":          queryCache,
		"query_large":          queryLarge,
		"query_groups":         queryGroups,
	} {
		scenarios[id] = scenario
	}
}

const soon = 30 * time.Second

// until calls probe until it says yes.
func until(what string, probe func() bool) {
	for deadline := time.Now().Add(soon); !probe(); time.Sleep(20 * time.Millisecond) {
		check(time.Now().Before(deadline), "waited %v in vain for %s", soon, what)
	}
}

// named returns a client that comes back by itself when its connection is lost.
func (w *world) named(id string) *kubemq.Client {
	client, err := kubemq.NewClient(w.ctx, kubemq.WithAddress(w.host, w.port), kubemq.WithClientId(id),
		kubemq.WithTransportType(kubemq.TransportTypeGRPC), kubemq.WithAutoReconnect(true),
		kubemq.WithReconnectInterval(100*time.Millisecond))
	must(err)
	return client
}

// got is what a subscriber has received: an event, a stored event, a command or a query.
type got struct {
	id, channel, metadata, body string
	tags                        map[string]string
	sequence                    uint64
	timestamp                   time.Time
}

// inbox collects what a subscriber receives. Probes, which show that a subscription works, are only counted.
type inbox struct {
	lock   sync.Mutex
	probes int
	list   []got
	failed []error
	leave  context.CancelFunc
}

const probe = "probe"

func (i *inbox) put(one got) {
	i.lock.Lock()
	defer i.lock.Unlock()
	if one.body == probe {
		i.probes++
	} else {
		i.list = append(i.list, one)
	}
}

func (i *inbox) all() []got {
	i.lock.Lock()
	defer i.lock.Unlock()
	return slices.Clone(i.list)
}

func (i *inbox) bodies() []string {
	var bodies []string
	for _, one := range i.all() {
		bodies = append(bodies, one.body)
	}
	return bodies
}

func (i *inbox) probed() bool {
	i.lock.Lock()
	defer i.lock.Unlock()
	return i.probes > 0
}

func (i *inbox) errors() []error {
	i.lock.Lock()
	defer i.lock.Unlock()
	return slices.Clone(i.failed)
}

// has waits for as many as are expected, and compares.
func (i *inbox) has(expected ...string) {
	until(fmt.Sprintf("%d messages", len(expected)), func() bool { return len(i.all()) >= len(expected) })
	check(slices.Equal(i.bodies(), expected), "%v instead of %v", i.bodies(), expected)
}

// collect receives until the subscription is left.
func collect[T any](ctx context.Context, messages <-chan T, failures <-chan error, i *inbox, convert func(T) got) {
	for {
		select {
		case message, ok := <-messages:
			if !ok {
				return
			}
			i.put(convert(message))
		case err := <-failures:
			i.lock.Lock()
			i.failed = append(i.failed, err)
			i.lock.Unlock()
		case <-ctx.Done():
			return
		}
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

func (w *world) publish(client *kubemq.Client, channel string, bodies ...string) {
	for _, body := range bodies {
		must(client.NewEvent().SetChannel(channel).SetBody([]byte(body)).Send(w.ctx))
	}
}

func (w *world) store(client *kubemq.Client, channel string, bodies ...string) {
	for _, body := range bodies {
		result, err := client.NewEventStore().SetChannel(channel).SetBody([]byte(body)).Send(w.ctx)
		must(err)
		check(result.Sent && result.Err == nil, "%+v", result)
	}
}

// ready sends probes until every subscriber has seen one.
func (w *world) ready(client *kubemq.Client, channel string, inboxes ...*inbox) {
	until("the subscriptions", func() bool {
		err := client.NewEvent().SetChannel(channel).SetBody([]byte(probe)).Send(w.ctx)
		return err == nil && !slices.ContainsFunc(inboxes, func(i *inbox) bool { return !i.probed() })
	})
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

// together waits until members have got as many as are expected between them, each of them some, and compares.
func together(expected []string, members ...*inbox) {
	var union []string
	until("all messages of the group", func() bool {
		union = nil
		for _, member := range members {
			union = append(union, member.bodies()...)
		}
		return len(union) >= len(expected)
	})
	slices.Sort(union)
	slices.Sort(expected)
	check(slices.Equal(union, expected), "%v", union)
	for _, member := range members {
		check(len(member.all()) > 0, "a member of the group got nothing")
	}
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

// large is the body of messages that pass the limits of every SDK just so.
var large = strings.Repeat("0123456789", 300_000)

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

// distinct drops what comes again.
func distinct(bodies []string) []string {
	var list []string
	for _, body := range bodies {
		if !slices.Contains(list, body) {
			list = append(list, body)
		}
	}
	return list
}

// respond answers commands: with the tags that it got, or with an error when the body asks for it.
func (w *world) respond(client *kubemq.Client, channel, group string) *inbox {
	ctx, leave := context.WithCancel(w.ctx)
	failures := make(chan error, 10)
	commands, err := client.SubscribeToCommands(ctx, channel, group, failures)
	must(err)
	i := &inbox{leave: leave}
	go collect(ctx, commands, failures, i, func(c *kubemq.CommandReceive) got {
		response := client.NewResponse().SetRequestId(c.Id).SetResponseTo(c.ResponseTo).SetTags(c.Tags).SetExecutedAt(time.Now())
		if string(c.Body) == "fail" {
			response.SetError(errors.New("it failed"))
		}
		_ = response.Send(w.ctx)
		return got{id: c.Id, channel: c.Channel, metadata: c.Metadata, body: string(c.Body), tags: c.Tags}
	})
	return i
}

// answer answers queries: with metadata, body and tags of the query, or with an error when the body asks for it.
func (w *world) answer(client *kubemq.Client, channel, group string) *inbox {
	ctx, leave := context.WithCancel(w.ctx)
	failures := make(chan error, 10)
	queries, err := client.SubscribeToQueries(ctx, channel, group, failures)
	must(err)
	i := &inbox{leave: leave}
	go collect(ctx, queries, failures, i, func(q *kubemq.QueryReceive) got {
		response := client.NewResponse().SetRequestId(q.Id).SetResponseTo(q.ResponseTo).SetMetadata(q.Metadata).
			SetBody(append([]byte("answer to "), q.Body...)).SetTags(q.Tags).SetExecutedAt(time.Now())
		if string(q.Body) == "fail" {
			response.SetError(errors.New("it failed"))
		}
		_ = response.Send(w.ctx)
		return got{id: q.Id, channel: q.Channel, metadata: q.Metadata, body: string(q.Body), tags: q.Tags}
	})
	return i
}

func (w *world) command(client *kubemq.Client, body string, timeout time.Duration) (*kubemq.CommandResponse, error) {
	return client.NewCommand().SetChannel(w.queue).SetMetadata("metadata").SetBody([]byte(body)).AddTag("key", "value").
		SetTimeout(timeout).Send(w.ctx)
}

func (w *world) query(client *kubemq.Client, body string, timeout time.Duration) (*kubemq.QueryResponse, error) {
	return client.NewQuery().SetChannel(w.queue).SetMetadata("metadata").SetBody([]byte(body)).AddTag("key", "value").
		SetTimeout(timeout).Send(w.ctx)
}

// commandsReady sends probes until every responder has seen one.
func (w *world) commandsReady(client *kubemq.Client, inboxes ...*inbox) {
	until("the responders", func() bool {
		response, err := w.command(client, probe, time.Second)
		return err == nil && response.Executed && !slices.ContainsFunc(inboxes, func(i *inbox) bool { return !i.probed() })
	})
}

func (w *world) queriesReady(client *kubemq.Client, inboxes ...*inbox) {
	until("the responders", func() bool {
		response, err := w.query(client, probe, time.Second)
		return err == nil && response.Executed && !slices.ContainsFunc(inboxes, func(i *inbox) bool { return !i.probed() })
	})
}

func commandAnswer(w *world) {
	client := w.client()
	defer client.Close()
	i := w.respond(client, w.queue, "")
	w.commandsReady(client, i)
	response, err := w.command(client, "body", 10*time.Second)
	must(err)
	check(response.Executed && response.Error == "" && response.Tags["key"] == "value", "%+v", response)
	i.has("body")
	one := i.all()[0]
	check(one.metadata == "metadata" && one.tags["key"] == "value" && one.channel == w.queue && one.id != "", "%+v", one)
}

func commandError(w *world) {
	client := w.client()
	defer client.Close()
	w.commandsReady(client, w.respond(client, w.queue, ""))
	response, err := w.command(client, "fail", 10*time.Second)
	must(err)
	check(!response.Executed && response.Error == "it failed", "%+v", response)
}

func isTimeout(err error, started time.Time) {
	check(err != nil && strings.Contains(err.Error(), "Error 301"), "%v", err)
	took := time.Since(started)
	check(took > 950*time.Millisecond && took < 10*time.Second, "after %v", took)
}

func commandTimeout(w *world) {
	client := w.client()
	defer client.Close()
	started := time.Now()
	_, err := w.command(client, "body", time.Second)
	isTimeout(err, started)
}

func commandGroups(w *world) {
	client := w.client()
	defer client.Close()
	one, two := w.respond(client, w.queue, "group"), w.respond(client, w.queue, "group")
	w.commandsReady(client, one, two)
	for _, body := range texts(1, 60) {
		response, err := w.command(client, body, 10*time.Second)
		must(err)
		check(response.Executed, "%+v", response)
	}
	together(texts(1, 60), one, two)
}

func commandConcurrent(w *world) {
	client := w.client()
	defer client.Close()
	i := w.respond(client, w.queue, "")
	w.commandsReady(client, i)
	failures := make(chan error, 50)
	for _, body := range texts(1, 50) {
		go func() {
			response, err := w.command(client, body, 10*time.Second)
			if err == nil && !response.Executed {
				err = errors.New("not executed")
			}
			failures <- err
		}()
	}
	for range 50 {
		must(<-failures)
	}
	together(texts(1, 50), i)
}

func commandReconnect(w *world) {
	client, sender := w.named("go1"), w.client()
	defer client.Close()
	defer sender.Close()
	i := w.respond(client, w.queue, "")
	w.commandsReady(sender, i)
	w.again("kill")
	w.commandsReady(sender, i)
	response, err := w.command(sender, "body", 10*time.Second)
	must(err)
	check(response.Executed, "%+v", response)
}

func queryAnswer(w *world) {
	client := w.client()
	defer client.Close()
	i := w.answer(client, w.queue, "")
	w.queriesReady(client, i)
	response, err := w.query(client, "body", 10*time.Second)
	must(err)
	check(response.Executed && response.Error == "" && !response.CacheHit, "%+v", response)
	check(string(response.Body) == "answer to body" && response.Metadata == "metadata" && response.Tags["key"] == "value", "%+v", response)
	i.has("body")
	check(i.all()[0].metadata == "metadata" && i.all()[0].tags["key"] == "value", "%+v", i.all()[0])
}

func queryError(w *world) {
	client := w.client()
	defer client.Close()
	w.queriesReady(client, w.answer(client, w.queue, ""))
	response, err := w.query(client, "fail", 10*time.Second)
	must(err)
	check(!response.Executed && response.Error == "it failed", "%+v", response)
}

func queryTimeout(w *world) {
	client := w.client()
	defer client.Close()
	started := time.Now()
	_, err := w.query(client, "body", time.Second)
	isTimeout(err, started)
}

func queryCache(w *world) {
	client := w.client()
	defer client.Close()
	i := w.answer(client, w.queue, "")
	w.queriesReady(client, i)
	// This SDK sends milliseconds where the server takes seconds: how the entry ends is seen with other SDKs.
	for _, hit := range []bool{false, true, true} {
		response, err := client.NewQuery().SetChannel(w.queue).SetBody([]byte("body")).SetTimeout(10 * time.Second).
			SetCacheKey("key").SetCacheTTL(2 * time.Second).Send(w.ctx)
		must(err)
		check(response.Executed && string(response.Body) == "answer to body" && response.CacheHit == hit, "%+v", response)
	}
	i.has("body")
}

func queryLarge(w *world) {
	client := w.client()
	defer client.Close()
	i := w.answer(client, w.queue, "")
	w.queriesReady(client, i)
	response, err := w.query(client, large, 10*time.Second)
	must(err)
	check(string(response.Body) == "answer to "+large, "the body of the answer changed")
	until("the query", func() bool { return len(i.all()) > 0 })
	check(i.all()[0].body == large, "the body changed")
}

func queryGroups(w *world) {
	client := w.client()
	defer client.Close()
	one, two := w.answer(client, w.queue, "group"), w.answer(client, w.queue, "group")
	w.queriesReady(client, one, two)
	for _, body := range texts(1, 60) {
		response, err := w.query(client, body, 10*time.Second)
		must(err)
		check(string(response.Body) == "answer to "+body, "%+v", response)
	}
	together(texts(1, 60), one, two)
}
