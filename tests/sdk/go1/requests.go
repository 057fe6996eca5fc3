package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/kubemq-io/kubemq-go"
)

func init() {
	for id, scenario := range map[string]func(*world){
		"command_answer":     commandAnswer,
		"command_error":      commandError,
		"command_timeout":    commandTimeout,
		"command_groups":     commandGroups,
		"command_concurrent": commandConcurrent,
		"command_reconnect":  commandReconnect,
		"query_answer":       queryAnswer,
		"query_error":        queryError,
		"query_timeout":      queryTimeout,
		"query_cache":        queryCache,
		"query_large":        queryLarge,
		"query_groups":       queryGroups,
	} {
		scenarios[id] = scenario
	}
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
