package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubemq-io/kubemq-go"
	"github.com/kubemq-io/kubemq-go/queues_stream"
)

// world is what a scenario gets: where the server is, how to end it and start it again, and a channel of its own.
type world struct {
	host  string
	port  int
	again func(how string)
	ctx   context.Context
	queue string
}

var scenarios = map[string]func(*world){
	"ping":                     ping,
	"send_receive":             sendReceive,
	"send_batch":               sendBatch,
	"send_refused":             sendRefused,
	"receive_empty":            receiveEmpty,
	"peek":                     peek,
	"ack_all":                  ackAll,
	"queues_info":              queuesInfo,
	"delay":                    delay,
	"expiration":               expiration,
	"stream_ack":               streamAck,
	"stream_reject":            streamReject,
	"stream_extend_visibility": streamExtendVisibility,
	"stream_visibility":        streamVisibility,
	"stream_resend":            streamResend,
	"stream_resend_new":        streamResendNew,
	"stream_dead_letter":       streamDeadLetter,
	"stream_disconnect":        streamDisconnect,
	"stream_empty":             streamEmpty,
	"transaction":              transaction,
	"upstream_send":            upstreamSend,
	"poll_auto_ack":            pollAutoAck,
	"poll_empty":               pollEmpty,
	"poll_ack_all":             pollAckAll,
	"poll_ack_each":            pollAckEach,
	"poll_nack_all":            pollNackAll,
	"poll_nack_each":           pollNackEach,
	"poll_requeue_all":         pollRequeueAll,
	"poll_requeue_each":        pollRequeueEach,
	"poll_mixed":               pollMixed,
	"poll_close":               pollClose,
	"poll_visibility":          pollVisibility,
	"poll_dead_letter":         pollDeadLetter,
	"poll_errors":              pollErrors,
	"channels":                 channels,
	"large_message":            largeMessage,
	"batch_of_100_kilobytes":   batchOf100Kilobytes,
	"duplicate_client_ids":     duplicateClientIDs,
	"concurrent_receivers":     concurrentReceivers,
	"reconnect":                func(w *world) { reconnect(w, "kill") },
	"reconnect_stream":         func(w *world) { reconnectStream(w, "kill") },
	"restart":                  func(w *world) { reconnect(w, "stop") },
	"restart_stream":           func(w *world) { reconnectStream(w, "stop") },
}

func (w *world) client() *kubemq.Client {
	client, err := kubemq.NewClient(w.ctx, kubemq.WithAddress(w.host, w.port), kubemq.WithClientId("go1"),
		kubemq.WithTransportType(kubemq.TransportTypeGRPC), kubemq.WithCheckConnection(true))
	must(err)
	return client
}

func (w *world) typed() *kubemq.QueuesClient {
	client, err := kubemq.NewQueuesClient(w.ctx, kubemq.WithAddress(w.host, w.port), kubemq.WithClientId("go1"),
		kubemq.WithTransportType(kubemq.TransportTypeGRPC))
	must(err)
	return client
}

func (w *world) streams() *queues_stream.QueuesStreamClient {
	client, err := queues_stream.NewQueuesStreamClient(w.ctx, queues_stream.WithAddress(w.host, w.port),
		queues_stream.WithClientId("go1"))
	must(err)
	return client
}

func texts(from, to int) []string {
	var list []string
	for number := from; number <= to; number++ {
		list = append(list, fmt.Sprint(number))
	}
	return list
}

// fill sends messages with the given bodies in one batch.
func (w *world) fill(client *kubemq.Client, queue string, bodies ...string) {
	batch := client.NewQueueMessages()
	for _, body := range bodies {
		batch.Add(client.NewQueueMessage().SetChannel(queue).SetBody([]byte(body)))
	}
	results, err := batch.Send(w.ctx)
	must(err)
	check(len(results) == len(bodies), "%d results", len(results))
	for _, result := range results {
		check(!result.IsError, "%s", result.Error)
	}
}

// take receives up to max messages by a single call.
func (w *world) take(client *kubemq.Client, queue string, max, wait int) []*kubemq.QueueMessage {
	response, err := client.NewReceiveQueueMessagesRequest().SetChannel(queue).SetMaxNumberOfMessages(max).
		SetWaitTimeSeconds(wait).Send(w.ctx)
	must(err)
	check(!response.IsError, "%s", response.Error)
	check(int(response.MessagesReceived) == len(response.Messages), "%d received", response.MessagesReceived)
	return response.Messages
}

func bodiesOf(messages []*kubemq.QueueMessage) []string {
	var list []string
	for _, message := range messages {
		list = append(list, string(message.Body))
	}
	return list
}

func (w *world) takes(client *kubemq.Client, queue string, expected ...string) []*kubemq.QueueMessage {
	messages := w.take(client, queue, len(expected), 10)
	check(slices.Equal(bodiesOf(messages), expected), "%s has %v instead of %v", queue, bodiesOf(messages), expected)
	return messages
}

func (w *world) empty(client *kubemq.Client, queue string) {
	messages := w.take(client, queue, 1, 1)
	check(len(messages) == 0, "%s has %v", queue, bodiesOf(messages))
}

func ping(w *world) {
	client := w.client()
	defer client.Close()
	info, err := client.Ping(w.ctx)
	must(err)
	check(info.Host != "" && info.Version != "", "%+v", info)
	check(info.ServerStartTime > 0 && info.ServerUpTimeSeconds >= 0, "%+v", info)
}

func sendReceive(w *world) {
	client := w.client()
	defer client.Close()
	result, err := client.NewQueueMessage().SetId("my-id").SetChannel(w.queue).SetMetadata("metadata").
		SetBody([]byte("body")).AddTag("key", "value").Send(w.ctx)
	must(err)
	check(!result.IsError && result.MessageID == "my-id" && result.SentAt > 0, "%+v", result)
	message := w.takes(client, w.queue, "body")[0]
	check(message.MessageID == "my-id" && message.Metadata == "metadata", "%v", message)
	check(message.Tags["key"] == "value" && message.Channel == w.queue, "%v", message)
	check(message.Attributes.Sequence == 1 && message.Attributes.ReceiveCount == 1, "%v", message.Attributes)
	w.empty(client, w.queue)
}

func sendBatch(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, texts(1, 10)...)
	w.takes(client, w.queue, texts(1, 10)...)
}

func sendRefused(w *world) {
	client := w.client()
	defer client.Close()
	result, err := client.NewQueueMessage().SetChannel(w.queue).Send(w.ctx)
	must(err)
	check(result.IsError && strings.HasPrefix(result.Error, "Error 110:"), "%+v", result)
}

func receiveEmpty(w *world) {
	client := w.client()
	defer client.Close()
	started := time.Now()
	messages := w.take(client, w.queue, 10, 1)
	check(len(messages) == 0, "%v", bodiesOf(messages))
	check(time.Since(started) > 900*time.Millisecond, "answered after %v", time.Since(started))
}

func peek(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, texts(1, 5)...)
	for range 2 {
		response, err := client.NewReceiveQueueMessagesRequest().SetChannel(w.queue).SetMaxNumberOfMessages(3).
			SetWaitTimeSeconds(5).SetIsPeak(true).Send(w.ctx)
		must(err)
		check(response.IsPeak && slices.Equal(bodiesOf(response.Messages), texts(1, 3)), "%v", bodiesOf(response.Messages))
	}
	w.takes(client, w.queue, texts(1, 5)...)
}

func ackAll(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, texts(1, 7)...)
	response, err := client.NewAckAllQueueMessagesRequest().SetChannel(w.queue).SetWaitTimeSeconds(1).Send(w.ctx)
	must(err)
	check(!response.IsError && response.AffectedMessages == 7, "%+v", response)
	w.empty(client, w.queue)
}

func queuesInfo(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, texts(1, 3)...)
	info, err := client.QueuesInfo(w.ctx, w.queue)
	must(err)
	check(info.TotalQueues == 1 && len(info.Queues) == 1, "%+v", info)
	queue := info.Queues[0]
	check(queue.Name == w.queue && queue.Sent == 3 && queue.Waiting == 3 && queue.Delivered == 0, "%+v", queue)
}

func delay(w *world) {
	client := w.client()
	defer client.Close()
	started := time.Now()
	result, err := client.NewQueueMessage().SetChannel(w.queue).SetBody([]byte("late")).SetPolicyDelaySeconds(2).Send(w.ctx)
	must(err)
	check(!result.IsError && result.DelayedTo > 0, "%+v", result)
	w.takes(client, w.queue, "late")
	check(time.Since(started) > 1980*time.Millisecond, "it came after %v", time.Since(started))
}

func expiration(w *world) {
	client := w.client()
	defer client.Close()
	result, err := client.NewQueueMessage().SetChannel(w.queue).SetBody([]byte("old")).SetPolicyExpirationSeconds(1).Send(w.ctx)
	must(err)
	check(!result.IsError && result.ExpirationAt > 0, "%+v", result)
	time.Sleep(2 * time.Second)
	response, err := client.NewReceiveQueueMessagesRequest().SetChannel(w.queue).SetMaxNumberOfMessages(1).
		SetWaitTimeSeconds(1).Send(w.ctx)
	must(err)
	check(len(response.Messages) == 0 && response.MessagesExpired == 1, "%+v", response)
}

// next receives one message over the old stream.
func (w *world) next(stream *kubemq.StreamQueueMessage, body string, visibility int32) *kubemq.QueueMessage {
	message, err := stream.Next(w.ctx, visibility, 10)
	must(err)
	check(string(message.Body) == body, "got %q instead of %q", message.Body, body)
	return message
}

func streamAck(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, texts(1, 5)...)
	for _, body := range texts(1, 5) {
		stream := client.NewStreamQueueMessage().SetChannel(w.queue)
		must(w.next(stream, body, 30).Ack())
		// The next stream object can be made only after this one was released by the end of its stream.
	}
	w.empty(client, w.queue)
}

func streamReject(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, "1")
	must(w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 30).Reject())
	message := w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 30)
	check(message.Attributes.ReceiveCount == 2, "%v", message.Attributes)
	must(message.Ack())
	w.empty(client, w.queue)
}

func streamExtendVisibility(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, "1")
	message := w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 3)
	must(message.ExtendVisibility(30))
	time.Sleep(4 * time.Second)
	must(message.Ack())
	w.empty(client, w.queue)
}

func streamVisibility(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, "1")
	stream := client.NewStreamQueueMessage().SetChannel(w.queue)
	w.next(stream, "1", 1)
	// The same object receives again as soon as it has seen the end of the stream.
	var message *kubemq.QueueMessage
	for deadline := time.Now().Add(20 * time.Second); message == nil; {
		check(time.Now().Before(deadline), "the message did not come again")
		time.Sleep(500 * time.Millisecond)
		message, _ = stream.Next(w.ctx, 30, 5)
	}
	check(message.Attributes.ReceiveCount == 2, "%v", message.Attributes)
	must(message.Ack())
	w.empty(client, w.queue)
}

func streamResend(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, "1")
	must(w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 30).Resend(w.queue + ".other"))
	message := w.takes(client, w.queue+".other", "1")[0]
	check(message.Attributes.ReceiveCount == 1, "%v", message.Attributes)
	w.empty(client, w.queue)
}

func streamResendNew(w *world) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, "1")
	stream := client.NewStreamQueueMessage().SetChannel(w.queue)
	w.next(stream, "1", 30)
	must(stream.ResendWithNewMessage(client.NewQueueMessage().SetChannel(w.queue + ".other").SetBody([]byte("2"))))
	w.takes(client, w.queue+".other", "2")
	w.empty(client, w.queue)
}

func streamDeadLetter(w *world) {
	client := w.client()
	defer client.Close()
	result, err := client.NewQueueMessage().SetChannel(w.queue).SetBody([]byte("1")).SetPolicyMaxReceiveCount(3).
		SetPolicyMaxReceiveQueue(w.queue + ".dead").Send(w.ctx)
	must(err)
	check(!result.IsError, "%s", result.Error)
	for count := int32(1); count <= 3; count++ {
		message := w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 30)
		check(message.Attributes.ReceiveCount == count, "%v", message.Attributes)
		must(message.Reject())
	}
	letter := w.takes(client, w.queue+".dead", "1")[0]
	check(letter.Attributes.ReRouted && letter.Attributes.ReRoutedFromQueue == w.queue, "%v", letter.Attributes)
	w.empty(client, w.queue)
}

func streamDisconnect(w *world) {
	client := w.client()
	w.fill(client, w.queue, "1")
	w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 60)
	must(client.Close())
	client = w.client()
	defer client.Close()
	w.takes(client, w.queue, "1")
}

func streamEmpty(w *world) {
	client := w.client()
	defer client.Close()
	_, err := client.NewStreamQueueMessage().SetChannel(w.queue).Next(w.ctx, 30, 1)
	check(err != nil && strings.Contains(err.Error(), "Error 138:"), "%v", err)
	w.fill(client, w.queue, "1")
	must(w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "1", 30).Ack())
}

func transaction(w *world) {
	client, plain := w.typed(), w.client()
	defer client.Close()
	defer plain.Close()
	w.fill(plain, w.queue, texts(1, 5)...)
	receive := func(body string) *kubemq.QueueTransactionMessageResponse {
		request := kubemq.NewQueueTransactionMessageRequest().SetChannel(w.queue).SetVisibilitySeconds(3).SetWaitTimeSeconds(10)
		response, err := client.Transaction(w.ctx, request)
		must(err)
		check(string(response.Message.Body) == body, "got %q instead of %q", response.Message.Body, body)
		return response
	}
	must(receive("1").Ack())
	must(receive("2").Reject())
	three := receive("3")
	must(three.ExtendVisibilitySeconds(30))
	time.Sleep(4 * time.Second)
	must(three.Ack())
	must(receive("4").Resend(w.queue + ".other"))
	must(receive("5").ResendNewMessage(kubemq.NewQueueMessage().SetClientId("go1").SetChannel(w.queue + ".other").SetBody([]byte("6"))))
	w.takes(plain, w.queue+".other", "4", "6")
	again := receive("2")
	check(again.Message.Attributes.ReceiveCount == 2, "%v", again.Message.Attributes)
	must(again.Ack())
	w.empty(plain, w.queue)
}

// pour sends messages over the upstream.
func (w *world) pour(client *queues_stream.QueuesStreamClient, queue string, change func(*queues_stream.QueueMessage), bodies ...string) {
	var messages []*queues_stream.QueueMessage
	for _, body := range bodies {
		message := queues_stream.NewQueueMessage().SetChannel(queue).SetBody([]byte(body))
		if change != nil {
			change(message)
		}
		messages = append(messages, message)
	}
	result, err := client.Send(w.ctx, messages...)
	must(err)
	check(len(result.Results) == len(bodies), "%d results", len(result.Results))
	for _, one := range result.Results {
		check(!one.IsError, "%s", one.Error)
	}
}

func (w *world) poll(client *queues_stream.QueuesStreamClient, request *queues_stream.PollRequest, expected ...string) *queues_stream.PollResponse {
	response, err := client.Poll(w.ctx, request)
	must(err)
	check(slices.Equal(pollBodies(response), expected), "%s gave %v instead of %v", request.Channel, pollBodies(response), expected)
	return response
}

func pollBodies(response *queues_stream.PollResponse) []string {
	var list []string
	for _, message := range response.Messages {
		list = append(list, string(message.Body))
	}
	return list
}

func counts(response *queues_stream.PollResponse) []int32 {
	var list []int32
	for _, message := range response.Messages {
		list = append(list, message.Attributes.ReceiveCount)
	}
	return list
}

func request(queue string, max int) *queues_stream.PollRequest {
	return queues_stream.NewPollRequest().SetChannel(queue).SetMaxItems(max).SetWaitTimeout(10_000)
}

func nothing(queue string) *queues_stream.PollRequest {
	return request(queue, 10).SetWaitTimeout(1000)
}

func upstreamSend(w *world) {
	client, plain := w.streams(), w.client()
	defer client.Close()
	defer plain.Close()
	// The first send makes the stream, which the SDK does not expect to happen twice at once.
	w.pour(client, w.queue, nil, "0")
	var tasks sync.WaitGroup
	failures := make(chan any, 10)
	for task := range 10 {
		tasks.Add(1)
		go func() {
			defer tasks.Done()
			defer func() {
				if thrown := recover(); thrown != nil {
					failures <- thrown
				}
			}()
			for number := range 10 {
				w.pour(client, w.queue, nil, fmt.Sprintf("%d-%d", task, number), fmt.Sprintf("%d-%d'", task, number))
			}
		}()
	}
	tasks.Wait()
	check(len(failures) == 0, "%d tasks failed", len(failures))
	messages := w.take(plain, w.queue, 201, 10)
	check(len(messages) == 201, "%d messages", len(messages))
}

func pollAutoAck(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 10)...)
	w.poll(client, request(w.queue, 10).SetAutoAck(true), texts(1, 10)...)
	w.poll(client, nothing(w.queue))
}

func pollEmpty(w *world) {
	client := w.streams()
	defer client.Close()
	for range 3 {
		started := time.Now()
		w.poll(client, nothing(w.queue))
		// The SDK gives up a second after the wait, so an answer that came is early enough.
		check(time.Since(started) > 900*time.Millisecond, "answered after %v", time.Since(started))
	}
}

func pollAckAll(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 10)...)
	must(w.poll(client, request(w.queue, 10), texts(1, 10)...).AckAll())
	w.poll(client, nothing(w.queue))
}

func pollAckEach(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 10)...)
	for _, message := range w.poll(client, request(w.queue, 10), texts(1, 10)...).Messages {
		must(message.Ack())
	}
	w.poll(client, nothing(w.queue))
}

func pollNackAll(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 5)...)
	for count := int32(1); count <= 4; count++ {
		response := w.poll(client, request(w.queue, 5), texts(1, 5)...)
		check(slices.Equal(counts(response), slices.Repeat([]int32{count}, 5)), "%v", counts(response))
		must(response.NAckAll())
	}
}

func pollNackEach(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 5)...)
	response := w.poll(client, request(w.queue, 5), texts(1, 5)...)
	for index, message := range response.Messages {
		if index%2 == 0 {
			must(message.Ack())
		} else {
			must(message.NAck())
		}
	}
	response = w.poll(client, request(w.queue, 2), "2", "4")
	check(slices.Equal(counts(response), []int32{2, 2}), "%v", counts(response))
	must(response.AckAll())
	w.poll(client, nothing(w.queue))
}

func pollRequeueAll(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 5)...)
	must(w.poll(client, request(w.queue, 5), texts(1, 5)...).ReQueueAll(w.queue + ".other"))
	response := w.poll(client, request(w.queue+".other", 5), texts(1, 5)...)
	check(slices.Equal(counts(response), []int32{1, 1, 1, 1, 1}), "%v", counts(response))
	must(response.AckAll())
	w.poll(client, nothing(w.queue))
}

func pollRequeueEach(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 4)...)
	for index, message := range w.poll(client, request(w.queue, 4), texts(1, 4)...).Messages {
		must(message.ReQueue(fmt.Sprintf("%s.%d", w.queue, index%2)))
	}
	must(w.poll(client, request(w.queue+".0", 2), "1", "3").AckAll())
	must(w.poll(client, request(w.queue+".1", 2), "2", "4").AckAll())
	w.poll(client, nothing(w.queue))
}

func pollMixed(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 6)...)
	response := w.poll(client, request(w.queue, 6), texts(1, 6)...)
	must(response.AckOffsets(1, 2))
	must(response.NAckOffsets(3, 4))
	must(response.ReQueueOffsets(w.queue+".other", 5, 6))
	must(w.poll(client, request(w.queue, 2), "3", "4").AckAll())
	must(w.poll(client, request(w.queue+".other", 2), "5", "6").AckAll())
	w.poll(client, nothing(w.queue))
}

func pollClose(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 3)...)
	must(w.poll(client, request(w.queue, 3), texts(1, 3)...).Close())
	response := w.poll(client, request(w.queue, 3), texts(1, 3)...)
	check(slices.Equal(counts(response), []int32{1, 1, 1}), "%v", counts(response))
	check(response.Messages[0].Attributes.Sequence == 1, "%v", response.Messages[0].Attributes)
	must(response.AckAll())
}

func pollVisibility(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, "1")
	w.poll(client, request(w.queue, 1).SetVisibilitySeconds(1), "1")
	response := w.poll(client, request(w.queue, 1), "1")
	check(slices.Equal(counts(response), []int32{2}), "%v", counts(response))
	must(response.AckAll())
}

func pollDeadLetter(w *world) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, func(message *queues_stream.QueueMessage) {
		message.SetPolicyMaxReceiveCount(2).SetPolicyMaxReceiveQueue(w.queue + ".dead")
	}, texts(1, 3)...)
	for range 2 {
		must(w.poll(client, request(w.queue, 3), texts(1, 3)...).NAckAll())
	}
	response := w.poll(client, request(w.queue+".dead", 3), texts(1, 3)...)
	for _, letter := range response.Messages {
		check(letter.Attributes.ReRouted && letter.Attributes.ReRoutedFromQueue == w.queue, "%v", letter.Attributes)
	}
	must(response.AckAll())
	w.poll(client, nothing(w.queue))
}

func pollErrors(w *world) {
	client := w.streams()
	defer client.Close()
	failures := make(chan error, 100)
	count := func(err error) { failures <- err }
	w.pour(client, w.queue, nil, texts(1, 20)...)
	for batch := range 4 {
		response := w.poll(client, request(w.queue, 5).SetOnErrorFunc(count), texts(batch*5+1, batch*5+5)...)
		for _, message := range response.Messages {
			must(message.Ack())
		}
		must(response.Close())
	}
	w.poll(client, nothing(w.queue).SetOnErrorFunc(count))
	check(len(failures) == 0, "%d errors", len(failures))
}

func channels(w *world) {
	client, plain := w.typed(), w.client()
	defer client.Close()
	defer plain.Close()
	must(client.Create(w.ctx, w.queue))
	list, err := client.List(w.ctx, w.queue)
	must(err)
	check(len(list) == 1 && list[0].Name == w.queue && list[0].Type == "queues", "%v", list)
	w.fill(plain, w.queue, "1", "2")
	w.takes(plain, w.queue, "1")
	list, err = client.List(w.ctx, w.queue)
	must(err)
	check(len(list) == 1 && list[0].Incoming.Messages == 2 && list[0].Outgoing.Messages == 1, "%v", list)
	must(client.Delete(w.ctx, w.queue))
	list, err = client.List(w.ctx, w.queue)
	must(err)
	check(len(list) == 0, "%v", list)
	w.empty(plain, w.queue)
	for _, kind := range []string{"events", "events_store", "commands", "queries"} {
		must(kubemq.CreateChannel(w.ctx, plain, "go1", w.queue, kind))
		if strings.HasPrefix(kind, "events") {
			list, err := kubemq.ListPubSubChannels(w.ctx, plain, "go1", kind, w.queue)
			must(err)
			check(len(list) == 1 && list[0].Type == kind, "%v", list)
		} else {
			list, err := kubemq.ListCQChannels(w.ctx, plain, "go1", kind, w.queue)
			must(err)
			check(len(list) == 1 && list[0].Type == kind, "%v", list)
		}
		must(kubemq.DeleteChannel(w.ctx, plain, "go1", w.queue, kind))
	}
}

func largeMessage(w *world) {
	client, streams := w.client(), w.streams()
	defer client.Close()
	defer streams.Close()
	body := bytes.Repeat([]byte("0123456789"), 1_000_000)
	result, err := client.NewQueueMessage().SetChannel(w.queue).SetBody(body).Send(w.ctx)
	must(err)
	check(!result.IsError, "%s", result.Error)
	response, err := streams.Poll(w.ctx, request(w.queue, 1))
	must(err)
	check(len(response.Messages) == 1 && bytes.Equal(response.Messages[0].Body, body), "the body changed")
	must(response.ReQueueAll(w.queue + ".other"))
	messages := w.take(client, w.queue+".other", 1, 10)
	check(len(messages) == 1 && bytes.Equal(messages[0].Body, body), "the body of the copy changed")
}

func batchOf100Kilobytes(w *world) {
	client := w.client()
	defer client.Close()
	body := strings.Repeat("x", 100_000)
	w.fill(client, w.queue, slices.Repeat([]string{body}, 100)...)
	messages := w.take(client, w.queue, 100, 10)
	check(len(messages) == 100, "%d messages in one call", len(messages))
	for _, message := range messages {
		check(string(message.Body) == body, "a body changed")
	}
}

func duplicateClientIDs(w *world) {
	first, second := w.client(), w.client()
	defer first.Close()
	defer second.Close()
	w.fill(first, w.queue, texts(1, 2)...)
	w.fill(second, w.queue, texts(3, 4)...)
	held := w.next(first.NewStreamQueueMessage().SetChannel(w.queue), "1", 30)
	w.takes(second, w.queue, "2", "3")
	w.takes(first, w.queue, "4")
	must(second.Close())
	must(held.Ack())
	w.empty(first, w.queue)
}

func concurrentReceivers(w *world) {
	first, second := w.client(), w.client()
	defer first.Close()
	defer second.Close()
	w.fill(first, w.queue, texts(1, 200)...)
	bodies := make(chan []string, 2)
	for _, client := range []*kubemq.Client{first, second} {
		go func() {
			var all []string
			for {
				response, err := client.NewReceiveQueueMessagesRequest().SetChannel(w.queue).SetMaxNumberOfMessages(7).
					SetWaitTimeSeconds(1).Send(w.ctx)
				if err != nil || response.IsError || len(response.Messages) == 0 {
					bodies <- all
					return
				}
				all = append(all, bodiesOf(response.Messages)...)
			}
		}()
	}
	together := append(<-bodies, <-bodies...)
	expected := texts(1, 200)
	slices.Sort(together)
	slices.Sort(expected)
	check(slices.Equal(together, expected), "%d messages: %v", len(together), together)
}

func reconnect(w *world, how string) {
	client := w.client()
	defer client.Close()
	w.fill(client, w.queue, texts(1, 3)...)
	w.takes(client, w.queue, "1")
	w.again(how)
	// The SDK does not repeat calls: the application does, until the connection is back.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := client.Ping(w.ctx)
		if err == nil {
			break
		}
		check(time.Now().Before(deadline), "still not connected: %v", err)
	}
	w.fill(client, w.queue, "4")
	w.takes(client, w.queue, "2", "3", "4")
	message := w.fillAndNext(client)
	must(message.Ack())
	w.empty(client, w.queue)
}

// fillAndNext shows that the old stream works too.
func (w *world) fillAndNext(client *kubemq.Client) *kubemq.QueueMessage {
	w.fill(client, w.queue, "5")
	return w.next(client.NewStreamQueueMessage().SetChannel(w.queue), "5", 30)
}

func reconnectStream(w *world, how string) {
	client := w.streams()
	defer client.Close()
	w.pour(client, w.queue, nil, texts(1, 4)...)
	must(w.poll(client, request(w.queue, 2), "1", "2").AckAll())
	// Asked behind the acknowledgement, so that it has taken effect.
	w.poll(client, request(w.queue, 1), "3")
	w.again(how)
	var response *queues_stream.PollResponse
	for deadline := time.Now().Add(30 * time.Second); response == nil || len(response.Messages) == 0; {
		check(time.Now().Before(deadline), "the streams did not come back")
		time.Sleep(200 * time.Millisecond)
		response, _ = client.Poll(w.ctx, request(w.queue, 2))
	}
	check(slices.Equal(pollBodies(response), []string{"3", "4"}), "%v", pollBodies(response))
	check(slices.Equal(counts(response), []int32{1, 1}), "%v", counts(response))
	must(response.AckAll())
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		_, err := client.Send(w.ctx, queues_stream.NewQueueMessage().SetChannel(w.queue).SetBody([]byte("5")))
		if err == nil {
			break
		}
		check(time.Now().Before(deadline), "still cannot send: %v", err)
	}
	must(w.poll(client, request(w.queue, 1), "5").AckAll())
}
