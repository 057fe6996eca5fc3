import io.kubemq.sdk.queue.Message;
import io.kubemq.sdk.queue.Queue;
import io.kubemq.sdk.queue.ReceiveMessagesResponse;
import io.kubemq.sdk.queue.SendMessageResult;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.IntStream;

/** What a scenario gets: where the server is, and a channel of its own; and what scenarios do again and again. */
final class World {
    private static final long SOON_MILLIS = 30_000;

    final String address;
    final String channel;

    World(String address, String channel) {
        this.address = address;
        this.channel = channel;
    }

    static void check(boolean condition, Object what) {
        if (!condition) {
            throw new AssertionError(String.valueOf(what));
        }
    }

    static void same(Object found, Object expected) {
        check(expected.equals(found), found + " instead of " + expected);
    }

    /** Calls probe until it says yes. */
    static void until(String what, Callable<Boolean> probe) throws Exception {
        long deadline = System.currentTimeMillis() + SOON_MILLIS;
        while (!probe.call()) {
            check(System.currentTimeMillis() < deadline, "waited " + SOON_MILLIS + " ms in vain for " + what);
            Thread.sleep(20);
        }
    }

    static List<String> texts(int first, int last) {
        return IntStream.rangeClosed(first, last).mapToObj(String::valueOf).toList();
    }

    static List<String> bodies(List<Message> messages) {
        return messages.stream().map(message -> new String(message.getBody())).toList();
    }

    static Message message(String body) {
        return new Message(body.getBytes(), "metadata", "", Map.of("key", "value"));
    }

    Queue queue() throws Exception {
        return queue(channel, "java1", 10);
    }

    /** A client of this SDK is of one queue, and waits as long as was said when it was made. */
    Queue queue(String name, String client, int waitSeconds) throws Exception {
        return new Queue(name, client, 32, waitSeconds, address);
    }

    void fill(Queue queue, List<String> bodies) throws Exception {
        List<SendMessageResult> results = new ArrayList<>();
        queue.SendQueueMessagesBatch(bodies.stream().map(World::message).toList()).getResults().forEach(results::add);
        same(results.stream().map(SendMessageResult::getIsError).toList(), bodies.stream().map(body -> false).toList());
    }

    /** Receives and acknowledges by one call. */
    static List<Message> take(Queue queue, int most, int waitSeconds) throws Exception {
        queue.setWaitTimeSecondsQueueMessages(waitSeconds);
        return list(queue.ReceiveQueueMessages(most, waitSeconds));
    }

    static List<Message> list(ReceiveMessagesResponse response) {
        check(!response.getIsError(), response.getError());
        List<Message> messages = new ArrayList<>();
        response.getMessages().forEach(messages::add);
        return messages;
    }

    static List<Message> takes(Queue queue, List<String> expected) throws Exception {
        List<Message> messages = take(queue, expected.size(), 10);
        same(bodies(messages), expected);
        return messages;
    }

    static void empty(Queue queue) throws Exception {
        same(bodies(take(queue, 1, 1)), List.of());
    }
}
