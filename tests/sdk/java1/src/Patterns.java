import static java.util.Map.entry;

import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import io.kubemq.sdk.commandquery.Channel;
import io.kubemq.sdk.commandquery.Request;
import io.kubemq.sdk.commandquery.RequestReceive;
import io.kubemq.sdk.commandquery.RequestType;
import io.kubemq.sdk.commandquery.Responder;
import io.kubemq.sdk.commandquery.Response;
import io.kubemq.sdk.event.Event;
import io.kubemq.sdk.event.EventReceive;
import io.kubemq.sdk.event.Result;
import io.kubemq.sdk.event.Subscriber;
import io.kubemq.sdk.subscription.EventsStoreType;
import io.kubemq.sdk.subscription.SubscribeRequest;
import io.kubemq.sdk.subscription.SubscribeType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.stream.Stream;

/** The scenarios of events, events-store, commands and queries. */
final class Patterns {
    static final Map<String, Main.Scenario> SCENARIOS = Map.ofEntries(
        entry("events_send", Patterns::eventsSend),
        entry("events_stream", Patterns::eventsStream),
        entry("events_fan_out", Patterns::eventsFanOut),
        entry("events_groups", Patterns::eventsGroups),
        entry("events_wildcards", Patterns::eventsWildcards),
        entry("events_large", Patterns::eventsLarge),
        entry("store_send", Patterns::storeSend),
        entry("store_stream", Patterns::storeStream),
        entry("store_new_only", Patterns::storeNewOnly),
        entry("store_first", w -> storeFrom(w, 1, EventsStoreType.StartFromFirst, 0)),
        entry("store_last", w -> storeFrom(w, 10, EventsStoreType.StartFromLast, 0)),
        entry("store_sequence", w -> storeFrom(w, 4, EventsStoreType.StartAtSequence, 4)),
        entry("store_sequence_ahead", Patterns::storeSequenceAhead),
        entry("store_time", Patterns::storeTime),
        entry("store_delta", Patterns::storeDelta),
        entry("store_groups", Patterns::storeGroups),
        entry("store_wildcards", Patterns::storeWildcards),
        entry("command_answer", w -> answer(w, RequestType.Command)),
        entry("command_error", w -> error(w, RequestType.Command)),
        entry("command_timeout", w -> timeout(w, RequestType.Command)),
        entry("command_groups", w -> groups(w, RequestType.Command)),
        entry("command_concurrent", Patterns::commandConcurrent),
        entry("query_answer", w -> answer(w, RequestType.Query)),
        entry("query_error", w -> error(w, RequestType.Query)),
        entry("query_timeout", w -> timeout(w, RequestType.Query)),
        entry("query_cache", Patterns::queryCache),
        entry("query_large", Patterns::queryLarge),
        entry("query_groups", w -> groups(w, RequestType.Query)));

    private static final String PROBE = "probe";

    /** The body of messages that pass the limits of every SDK just so. */
    private static final String LARGE = "0123456789".repeat(300_000);

    private Patterns() {}

    /** What a subscriber has received: an event, a stored event, a command or a query. */
    private record Got(String id, String channel, String metadata, String body, String tag, long sequence, long timestamp) {}

    /** Collects what a subscriber receives. Probes, which show that a subscription works, are only counted. */
    private static final class Inbox implements StreamObserver<EventReceive>, Responder.RequestResponseAsyncObserver {
        final List<Got> received = new CopyOnWriteArrayList<>();
        final List<Throwable> errors = new CopyOnWriteArrayList<>();
        volatile int probes;

        private void put(Got got) {
            if (PROBE.equals(got.body)) {
                probes++;
            } else {
                received.add(got);
            }
        }

        @Override
        public void onNext(EventReceive event) {
            put(new Got(event.getEventId(), event.getChannel(), event.getMetadata(), new String(event.getBody()),
                event.getTags().get("key"), event.getSequence(), event.getTimestamp()));
        }

        /** Answers: with metadata and body of the request, or with an error when the body asks for it. */
        @Override
        public Response onNext(RequestReceive request) {
            String body = new String(request.getBody());
            Response response = new Response(request);
            response.setClientID("java1");
            response.setMetadata(request.getMetadata());
            response.setBody(("answer to " + body).getBytes());
            response.setExecuted(!"fail".equals(body));
            response.setError("fail".equals(body) ? "it failed" : "");
            put(new Got(request.getRequestId(), request.getChannel(), request.getMetadata(), body,
                request.getTags().get("key"), 0, 0));
            return response;
        }

        @Override
        public void onError(Throwable error) {
            errors.add(error);
        }

        @Override
        public void onCompleted() {}

        List<String> bodies() {
            return received.stream().map(Got::body).toList();
        }

        /** Waits for as many as are expected, and compares. */
        void has(List<String> expected) throws Exception {
            World.until(expected.size() + " messages", () -> received.size() >= expected.size());
            World.same(bodies(), expected);
        }
    }

    private static SubscribeRequest request(SubscribeType type, String client, String channel, String group) {
        SubscribeRequest request = new SubscribeRequest();
        request.setSubscribeType(type);
        request.setClientID(client);
        request.setChannel(channel);
        request.setGroup(group);
        request.setEventsStoreType(EventsStoreType.Undefined);
        return request;
    }

    private static Inbox toEvents(World w, String channel, String group) throws Exception {
        Inbox inbox = new Inbox();
        new Subscriber(w.address).SubscribeToEvents(request(SubscribeType.Events, "java1", channel, group), inbox);
        return inbox;
    }

    private static Inbox toStore(World w, String client, String channel, String group, EventsStoreType type, long value)
        throws Exception {
        Inbox inbox = new Inbox();
        SubscribeRequest request = request(SubscribeType.EventsStore, client, channel, group);
        request.setEventsStoreType(type);
        request.setEventsStoreTypeValue(value);
        new Subscriber(w.address).SubscribeToEvents(request, inbox);
        return inbox;
    }

    private static Inbox toStore(World w, EventsStoreType type, long value) throws Exception {
        return toStore(w, "java1", w.channel, "", type, value);
    }

    private static io.kubemq.sdk.event.Channel sender(World w, String channel, boolean store) {
        return new io.kubemq.sdk.event.Channel(channel, "java1", store, w.address);
    }

    private static void send(io.kubemq.sdk.event.Channel sender, List<String> bodies) throws Exception {
        for (String body : bodies) {
            Result result = sender.SendEvent(new Event("", "metadata", body.getBytes()));
            World.check(result.isSent(), result.getError());
        }
    }

    /** Sends probes until every subscriber has seen one. */
    private static void ready(io.kubemq.sdk.event.Channel sender, Inbox... inboxes) throws Exception {
        World.until("the subscriptions", () -> {
            send(sender, List.of(PROBE));
            return Arrays.stream(inboxes).allMatch(inbox -> inbox.probes > 0);
        });
    }

    /** Waits until members have got as many as are expected between them, each of them some, and compares. */
    private static void together(List<String> expected, Inbox... members) throws Exception {
        World.until("all messages of the group",
            () -> Arrays.stream(members).mapToInt(member -> member.received.size()).sum() >= expected.size());
        Stream<String> union = Arrays.stream(members).flatMap(member -> member.bodies().stream());
        World.same(union.sorted().toList(), expected.stream().sorted().toList());
        World.check(Arrays.stream(members).noneMatch(member -> member.received.isEmpty()), "a member got nothing");
    }

    private static Event fullEvent() {
        Event event = new Event("my-id", "metadata", "body".getBytes());
        event.setTag("key", "value");
        return event;
    }

    private static void eventsSend(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, false);
        Inbox inbox = toEvents(w, w.channel, "");
        ready(sender, inbox);
        World.check(sender.SendEvent(fullEvent()).isSent(), "not sent");
        inbox.has(List.of("body"));
        World.same(inbox.received.get(0), new Got("my-id", w.channel, "metadata", "body", "value", 0, 0));
    }

    private static void eventsStream(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, false);
        Inbox inbox = toEvents(w, w.channel, "");
        ready(sender, inbox);
        Results results = new Results();
        StreamObserver<Event> stream = sender.StreamEvent(results, true);
        for (String body : World.texts(1, 100)) {
            stream.onNext(new Event("", "metadata", body.getBytes()));
        }
        inbox.has(World.texts(1, 100));
        stream.onCompleted();
        World.same(results.all, List.of());
    }

    /** What a stream says of the events sent over it. */
    private static final class Results implements StreamObserver<Result> {
        final List<String> all = new CopyOnWriteArrayList<>();

        @Override
        public void onNext(Result result) {
            all.add(result.isSent() ? result.getEventId() : result.getError());
        }

        @Override
        public void onError(Throwable error) {
            all.add(error.toString());
        }

        @Override
        public void onCompleted() {}
    }

    private static void eventsFanOut(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, false);
        Inbox first = toEvents(w, w.channel, "");
        Inbox second = toEvents(w, w.channel, "");
        ready(sender, first, second);
        send(sender, World.texts(1, 20));
        first.has(World.texts(1, 20));
        second.has(World.texts(1, 20));
    }

    private static void eventsGroups(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, false);
        Inbox one = toEvents(w, w.channel, "group");
        Inbox two = toEvents(w, w.channel, "group");
        Inbox other = toEvents(w, w.channel, "other");
        Inbox single = toEvents(w, w.channel, "");
        ready(sender, one, two, other, single);
        send(sender, World.texts(1, 60));
        single.has(World.texts(1, 60));
        other.has(World.texts(1, 60));
        together(World.texts(1, 60), one, two);
    }

    private static void eventsWildcards(World w) throws Exception {
        Inbox star = toEvents(w, w.channel + ".*", "");
        Inbox rest = toEvents(w, w.channel + ".>", "");
        ready(sender(w, w.channel + ".p", false), star, rest);
        send(sender(w, w.channel + ".a.b", false), List.of("deep"));
        send(sender(w, w.channel + ".a", false), List.of("flat"));
        rest.has(List.of("deep", "flat"));
        star.has(List.of("flat"));
        World.same(rest.received.stream().map(Got::channel).toList(), List.of(w.channel + ".a.b", w.channel + ".a"));
    }

    private static void eventsLarge(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, false);
        Inbox inbox = toEvents(w, w.channel, "");
        ready(sender, inbox);
        send(sender, List.of(LARGE));
        World.until("the event", () -> !inbox.received.isEmpty());
        World.check(inbox.bodies().equals(List.of(LARGE)), "the body changed");
    }

    private static void storeSend(World w) throws Exception {
        Result result = sender(w, w.channel, true).SendEvent(fullEvent());
        World.check(result.isSent(), result.getError());
        World.same(result.getEventId(), "my-id");
        Inbox inbox = toStore(w, EventsStoreType.StartFromFirst, 0);
        inbox.has(List.of("body"));
        Got got = inbox.received.get(0);
        World.same(got, new Got("my-id", w.channel, "metadata", "body", "value", 1, got.timestamp));
        World.check(Math.abs(got.timestamp / 1_000_000 - System.currentTimeMillis()) < 60_000, got);
    }

    private static void storeStream(World w) throws Exception {
        Results results = new Results();
        StreamObserver<Event> stream = sender(w, w.channel, true).StreamEvent(results, true);
        for (String body : World.texts(1, 100)) {
            stream.onNext(new Event(body, "metadata", body.getBytes()));
        }
        World.until("the results", () -> results.all.size() >= 100);
        World.same(results.all.stream().sorted().toList(), World.texts(1, 100).stream().sorted().toList());
        stream.onCompleted();
        toStore(w, EventsStoreType.StartFromFirst, 0).has(World.texts(1, 100));
    }

    /** Stores one message after the other until the subscriber gets one. */
    private static Got firstNew(World w, Inbox inbox) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, true);
        int[] number = {0};
        World.until("a new event", () -> {
            send(sender, List.of("new " + ++number[0]));
            return !inbox.received.isEmpty();
        });
        return inbox.received.get(0);
    }

    private static void storeNewOnly(World w) throws Exception {
        send(sender(w, w.channel, true), World.texts(1, 3));
        Got got = firstNew(w, toStore(w, EventsStoreType.StartNewOnly, 0));
        World.check(got.body.startsWith("new") && got.sequence > 3, got);
    }

    /** Stores ten, expects all from number first on, and then what is stored afterwards. */
    private static void storeFrom(World w, int first, EventsStoreType type, long value) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, true);
        send(sender, World.texts(1, 10));
        Inbox inbox = toStore(w, type, value);
        inbox.has(World.texts(first, 10));
        send(sender, World.texts(11, 12));
        inbox.has(World.texts(first, 12));
        World.same(inbox.received.stream().map(got -> String.valueOf(got.sequence)).toList(), World.texts(first, 12));
    }

    private static void storeSequenceAhead(World w) throws Exception {
        send(sender(w, w.channel, true), World.texts(1, 3));
        Got got = firstNew(w, toStore(w, EventsStoreType.StartAtSequence, 4));
        World.check("new 1".equals(got.body) && got.sequence == 4, got);
    }

    private static void storeTime(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, true);
        send(sender, World.texts(1, 5));
        Thread.sleep(2500);
        long seconds = System.currentTimeMillis() / 1000 - 1;
        send(sender, World.texts(6, 10));
        toStore(w, EventsStoreType.StartAtTime, seconds).has(World.texts(6, 10));
    }

    private static void storeDelta(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, true);
        send(sender, World.texts(1, 5));
        Thread.sleep(5000);
        send(sender, World.texts(6, 10));
        toStore(w, EventsStoreType.StartAtTimeDelta, 3).has(World.texts(6, 10));
    }

    private static void storeGroups(World w) throws Exception {
        io.kubemq.sdk.event.Channel sender = sender(w, w.channel, true);
        Inbox one = toStore(w, "one", w.channel, "group", EventsStoreType.StartFromFirst, 0);
        Inbox two = toStore(w, "two", w.channel, "group", EventsStoreType.StartFromFirst, 0);
        ready(sender, one, two);
        send(sender, World.texts(1, 100));
        together(World.texts(1, 100), one, two);
        for (Inbox member : List.of(one, two)) {
            List<Long> sequences = member.received.stream().map(Got::sequence).toList();
            World.same(sequences, sequences.stream().sorted().toList());
        }
    }

    private static void storeWildcards(World w) throws Exception {
        Inbox inbox = toStore(w, "java1", w.channel + ".*", "", EventsStoreType.StartFromFirst, 0);
        World.until("the refusal", () -> !inbox.errors.isEmpty());
        World.check(inbox.errors.get(0).getMessage().contains("Error 107"), inbox.errors);
    }

    private static Inbox respond(World w, RequestType type, String group) throws Exception {
        Inbox inbox = new Inbox();
        SubscribeType subscribe = type == RequestType.Command ? SubscribeType.Commands : SubscribeType.Queries;
        new Responder(w.address).SubscribeToRequestsAsync(request(subscribe, "java1", w.channel, group), inbox);
        return inbox;
    }

    private static Channel asker(World w, RequestType type, int milliseconds) {
        return new Channel(type, w.channel, "java1", milliseconds, "", 0, w.address);
    }

    private static Response ask(Channel asker, String body) throws Exception {
        Request request = new Request("", "metadata", body.getBytes());
        request.setTag("key", "value");
        return asker.SendRequest(request);
    }

    /** Sends probes until every responder has seen one. */
    private static void ready(World w, RequestType type, Inbox... inboxes) throws Exception {
        Channel asker = asker(w, type, 1000);
        World.until("the responders", () -> {
            try {
                return ask(asker, PROBE).isExecuted() && Arrays.stream(inboxes).allMatch(inbox -> inbox.probes > 0);
            } catch (StatusRuntimeException nobody) {
                return false;
            }
        });
    }

    private static void answer(World w, RequestType type) throws Exception {
        Inbox inbox = respond(w, type, "");
        ready(w, type, inbox);
        Response response = ask(asker(w, type, 10_000), "body");
        World.check(response.isExecuted() && response.getError().isEmpty() && !response.isCacheHit(), response.getError());
        if (type == RequestType.Query) {
            World.same(new String(response.getBody()), "answer to body");
            World.same(response.getMetadata(), "metadata");
        }
        inbox.has(List.of("body"));
        Got got = inbox.received.get(0);
        World.same(got, new Got(got.id, w.channel, "metadata", "body", "value", 0, 0));
        World.check(!got.id.isEmpty(), "no id");
    }

    private static void error(World w, RequestType type) throws Exception {
        ready(w, type, respond(w, type, ""));
        Response response = ask(asker(w, type, 10_000), "fail");
        World.check(!response.isExecuted(), "executed");
        World.same(response.getError(), "it failed");
    }

    private static void timeout(World w, RequestType type) throws Exception {
        long started = System.currentTimeMillis();
        String error = "an answer";
        try {
            ask(asker(w, type, 1000), "body");
        } catch (StatusRuntimeException thrown) {
            error = thrown.getMessage();
        }
        World.check(error.contains("Error 301"), error);
        long took = System.currentTimeMillis() - started;
        World.check(took > 950 && took < 10_000, "after " + took + " ms");
    }

    private static void groups(World w, RequestType type) throws Exception {
        Inbox one = respond(w, type, "group");
        Inbox two = respond(w, type, "group");
        ready(w, type, one, two);
        Channel asker = asker(w, type, 10_000);
        for (String body : World.texts(1, 60)) {
            World.check(ask(asker, body).isExecuted(), body);
        }
        together(World.texts(1, 60), one, two);
    }

    private static void commandConcurrent(World w) throws Exception {
        Inbox inbox = respond(w, RequestType.Command, "");
        ready(w, RequestType.Command, inbox);
        Channel asker = asker(w, RequestType.Command, 10_000);
        ExecutorService executor = Executors.newFixedThreadPool(50);
        List<CompletableFuture<Boolean>> answers = new ArrayList<>();
        for (String body : World.texts(1, 50)) {
            answers.add(CompletableFuture.supplyAsync(() -> {
                try {
                    return ask(asker, body).isExecuted();
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            }, executor));
        }
        for (CompletableFuture<Boolean> answer : answers) {
            World.check(answer.get(), "not executed");
        }
        executor.shutdown();
        together(World.texts(1, 50), inbox);
    }

    private static void queryLarge(World w) throws Exception {
        Inbox inbox = respond(w, RequestType.Query, "");
        ready(w, RequestType.Query, inbox);
        Response response = ask(asker(w, RequestType.Query, 10_000), LARGE);
        World.check(new String(response.getBody()).equals("answer to " + LARGE), "the body of the answer changed");
        World.until("the query", () -> !inbox.received.isEmpty());
        World.check(inbox.bodies().equals(List.of(LARGE)), "the body changed");
    }

    private static void queryCache(World w) throws Exception {
        Inbox inbox = respond(w, RequestType.Query, "");
        ready(w, RequestType.Query, inbox);
        // Seconds, as the server takes them.
        Channel asker = new Channel(RequestType.Query, w.channel, "java1", 10_000, "key", 2, w.address);
        for (boolean hit : new boolean[] {false, true, true}) {
            Response response = ask(asker, "body");
            World.same(new String(response.getBody()), "answer to body");
            World.same(response.isCacheHit(), hit);
        }
        inbox.has(List.of("body"));
        Thread.sleep(2100);
        World.same(ask(asker, "body").isCacheHit(), false);
        inbox.has(List.of("body", "body"));
    }
}
