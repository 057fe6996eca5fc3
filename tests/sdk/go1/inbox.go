package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubemq-io/kubemq-go"
)

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

// ready sends probes until every subscriber has seen one.
func (w *world) ready(client *kubemq.Client, channel string, inboxes ...*inbox) {
	until("the subscriptions", func() bool {
		err := client.NewEvent().SetChannel(channel).SetBody([]byte(probe)).Send(w.ctx)
		return err == nil && !slices.ContainsFunc(inboxes, func(i *inbox) bool { return !i.probed() })
	})
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

// large is the body of messages that pass the limits of every SDK just so.
var large = strings.Repeat("0123456789", 300_000)

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
