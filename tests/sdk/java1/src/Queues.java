import static java.util.Map.entry;

import io.kubemq.sdk.grpc.Kubemq.PingResult;
import io.kubemq.sdk.queue.Message;
import io.kubemq.sdk.queue.Queue;
import io.kubemq.sdk.queue.ReceiveMessagesResponse;
import io.kubemq.sdk.queue.SendMessageResult;
import io.kubemq.sdk.queue.Transaction;
import io.kubemq.sdk.queue.TransactionMessagesResponse;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicReference;

/** The scenarios of queues and reconnection. */
final class Queues {
    static final Map<String, Main.Scenario> SCENARIOS = Map.ofEntries(
        entry("ping", Queues::ping),
        entry("send_receive", Queues::sendReceive),
        entry("send_batch", Queues::sendBatch),
        entry("send_refused", Queues::sendRefused),
        entry("receive_empty", Queues::receiveEmpty),
        entry("peek", Queues::peek),
        entry("ack_all", Queues::ackAll),
        entry("delay", Queues::delay),
        entry("expiration", Queues::expiration),
        entry("duplicate_client_ids", Queues::duplicateClientIds),
        entry("concurrent_receivers", Queues::concurrentReceivers),
        entry("stream_ack", Queues::streamAck),
        entry("stream_reject", Queues::streamReject),
        entry("stream_extend_visibility", Queues::streamExtendVisibility),
        entry("stream_visibility", Queues::streamVisibility),
        entry("stream_resend", Queues::streamResend),
        entry("stream_resend_new", Queues::streamResendNew),
        entry("stream_dead_letter", Queues::streamDeadLetter),
        entry("stream_disconnect", Queues::streamDisconnect),
        entry("stream_empty", Queues::streamEmpty),
        entry("reconnect", world -> reconnect(world, "kill")),
        entry("reconnect_stream", world -> reconnectStream(world, "kill")),
        entry("restart", world -> reconnect(world, "stop")),
        entry("restart_stream", world -> reconnectStream(world, "stop")));

    private Queues() {}

    private static void ping(World w) throws Exception {
        PingResult info = w.queue().Ping();
        World.check(!info.getHost().isEmpty() && !info.getVersion().isEmpty(), info);
        World.check(info.getServerStartTime() > 0 && info.getServerUpTimeSeconds() >= 0, info);
    }

    private static void sendReceive(World w) throws Exception {
        Queue queue = w.queue();
        SendMessageResult result = queue.SendQueueMessage(World.message("body"));
        World.check(!result.getIsError() && !result.getMessageID().isEmpty() && result.getSentAt() > 0, result.getError());
        Message message = World.takes(queue, List.of("body")).get(0);
        // Without tags: the SDK takes them, but does not send them.
        World.same(message.getMetadata(), "metadata");
        World.same(message.getMessageID(), result.getMessageID());
        World.same(message.getQueueMessageAttributes().getSequence(), 1L);
        World.same(message.getQueueMessageAttributes().getReceiveCount(), 1);
        World.empty(queue);
    }

    private static void sendBatch(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, World.texts(1, 10));
        World.takes(queue, World.texts(1, 10));
    }

    private static void sendRefused(World w) throws Exception {
        SendMessageResult result = w.queue().SendQueueMessage(new Message(new byte[0], "", "", Map.of("key", "value")));
        World.check(result.getIsError() && result.getError().startsWith("Error 110:"), result.getError());
    }

    private static void receiveEmpty(World w) throws Exception {
        Queue queue = w.queue();
        long started = System.currentTimeMillis();
        World.empty(queue);
        World.check(System.currentTimeMillis() - started > 900, "answered too early");
    }

    private static void peek(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, World.texts(1, 5));
        for (int time = 0; time < 2; time++) {
            ReceiveMessagesResponse response = queue.PeekQueueMessage(3, 5);
            World.same(World.bodies(World.list(response)), World.texts(1, 3));
        }
        World.takes(queue, World.texts(1, 5));
    }

    private static void ackAll(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, World.texts(1, 7));
        queue.setWaitTimeSecondsQueueMessages(1);
        World.same(queue.AckAllQueueMessages().getAffectedMessages(), 7L);
        World.empty(queue);
    }

    private static void delay(World w) throws Exception {
        Queue queue = w.queue();
        long started = System.currentTimeMillis();
        SendMessageResult result = queue.SendQueueMessage(World.message("late").setDelay(2));
        World.check(!result.getIsError() && result.getDelayedTo() > 0, result.getError());
        World.takes(queue, List.of("late"));
        World.check(System.currentTimeMillis() - started > 1980, "it came too early");
    }

    private static void expiration(World w) throws Exception {
        Queue queue = w.queue();
        SendMessageResult result = queue.SendQueueMessage(World.message("old").setExpiration(1));
        World.check(!result.getIsError() && result.getExpirationAt() > 0, result.getError());
        Thread.sleep(2000);
        queue.setWaitTimeSecondsQueueMessages(1);
        ReceiveMessagesResponse response = queue.ReceiveQueueMessages(1, 1);
        World.same(World.bodies(World.list(response)), List.of());
        World.same(response.getMessagesExpired(), 1);
    }

    private static void duplicateClientIds(World w) throws Exception {
        Queue first = w.queue(w.channel, "same", 10);
        Queue second = w.queue(w.channel, "same", 10);
        w.fill(first, World.texts(1, 2));
        w.fill(second, World.texts(3, 4));
        Transaction held = receives(first, "1");
        World.takes(second, World.texts(2, 3));
        World.takes(first, List.of("4"));
        second.shutdown();
        settle(held, held::AckMessage);
        World.empty(first);
    }

    private static void concurrentReceivers(World w) throws Exception {
        w.fill(w.queue(), World.texts(1, 200));
        List<CompletableFuture<List<String>>> receivers = new ArrayList<>();
        for (String client : List.of("one", "two")) {
            receivers.add(CompletableFuture.supplyAsync(() -> drain(w, client)));
        }
        List<String> found = new ArrayList<>();
        for (CompletableFuture<List<String>> receiver : receivers) {
            found.addAll(receiver.get());
        }
        World.same(found.stream().sorted().toList(), World.texts(1, 200).stream().sorted().toList());
    }

    private static List<String> drain(World w, String client) {
        List<String> found = new ArrayList<>();
        try {
            Queue queue = w.queue(w.channel, client, 1);
            for (List<Message> messages; !(messages = World.take(queue, 7, 1)).isEmpty(); ) {
                found.addAll(World.bodies(messages));
            }
        } catch (Exception error) {
            found.add(error.toString());
        }
        return found;
    }

    /** Receives one message over the old stream. */
    private static Transaction receives(Queue queue, String body) throws Exception {
        return receives(queue.CreateTransaction(), body, 30);
    }

    private static Transaction receives(Transaction transaction, String body, int visibility) throws Exception {
        TransactionMessagesResponse response = transaction.Receive(visibility, 10);
        World.check(!response.getIsError(), response.getError());
        World.same(new String(response.getMessage().getBody()), body);
        return transaction;
    }

    /** Settles, and waits until the server has ended the stream. */
    private static void settle(Transaction transaction, Callable<TransactionMessagesResponse> how) throws Exception {
        try {
            TransactionMessagesResponse response = how.call();
            World.check(!response.getIsError(), response.getError());
        } catch (IOException lost) {
            // The SDK forgets the answer when the end of the stream comes right behind it.
        }
        ends(transaction);
    }

    private static void ends(Transaction transaction) throws Exception {
        World.until("the end of the stream", () -> {
            try {
                return transaction.getCurrentHandledMessage() == null;
            } catch (NullPointerException none) {
                return true;
            }
        });
    }

    private static int count(Transaction transaction) {
        return transaction.getCurrentHandledMessage().getAttributes().getReceiveCount();
    }

    private static void streamAck(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, World.texts(1, 5));
        for (String body : World.texts(1, 5)) {
            Transaction transaction = receives(queue, body);
            settle(transaction, transaction::AckMessage);
        }
        World.empty(queue);
    }

    private static void streamReject(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, List.of("1"));
        Transaction first = receives(queue, "1");
        settle(first, first::RejectMessage);
        Transaction second = receives(queue, "1");
        World.same(count(second), 2);
        settle(second, second::AckMessage);
        World.empty(queue);
    }

    private static void streamExtendVisibility(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, List.of("1"));
        Transaction transaction = receives(queue.CreateTransaction(), "1", 3);
        TransactionMessagesResponse response = transaction.ExtendVisibility(30);
        World.check(!response.getIsError(), response.getError());
        Thread.sleep(4000);
        settle(transaction, transaction::AckMessage);
        World.empty(queue);
    }

    private static void streamVisibility(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, List.of("1"));
        Transaction transaction = receives(queue.CreateTransaction(), "1", 1);
        ends(transaction);
        World.check(transaction.getExpirationStatus(), "the SDK was not told why");
        // A message is handed to the next transaction of the same object only when its stream has ended, too.
        Transaction second = receives(w.queue(), "1");
        World.same(count(second), 2);
        settle(second, second::AckMessage);
        World.empty(queue);
    }

    private static void streamResend(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, List.of("1"));
        Transaction transaction = receives(queue, "1");
        settle(transaction, () -> transaction.ReSend(w.channel + ".other"));
        Message message = World.takes(w.queue(w.channel + ".other", "java1", 10), List.of("1")).get(0);
        World.same(message.getQueueMessageAttributes().getReceiveCount(), 1);
        World.empty(queue);
    }

    private static void streamResendNew(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, List.of("1"));
        Transaction transaction = receives(queue, "1");
        Message replacement = World.message("2").setQueue(w.channel + ".other").setClientID("java1");
        settle(transaction, () -> transaction.Modify(replacement));
        World.takes(w.queue(w.channel + ".other", "java1", 10), List.of("2"));
        World.empty(queue);
    }

    private static void streamDeadLetter(World w) throws Exception {
        Queue queue = w.queue();
        String dead = w.channel + ".dead";
        Message message = World.message("1").setMaxReciveCount(3).setMaxReciveQueue(dead);
        World.check(!queue.SendQueueMessage(message).getIsError(), "not sent");
        for (int count = 1; count <= 3; count++) {
            Transaction transaction = receives(queue, "1");
            World.same(count(transaction), count);
            settle(transaction, transaction::RejectMessage);
        }
        Message letter = World.takes(w.queue(dead, "java1", 10), List.of("1")).get(0);
        World.check(letter.getQueueMessageAttributes().getReRouted(), letter.getQueueMessageAttributes());
        World.same(letter.getQueueMessageAttributes().getReRoutedFromQueue(), w.channel);
        World.empty(queue);
    }

    private static void streamDisconnect(World w) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, List.of("1"));
        // Closing a client of this SDK ends none of its streams: a process that is killed does.
        String java = System.getProperty("java.home") + "/bin/java";
        ProcessBuilder command = new ProcessBuilder(java, "-cp", System.getProperty("java.class.path"), "Hold", w.address, w.channel);
        Process child = command.redirectError(ProcessBuilder.Redirect.DISCARD).start();
        try (BufferedReader said = new BufferedReader(new InputStreamReader(child.getInputStream()))) {
            World.same(said.readLine(), "held");
        } finally {
            child.destroyForcibly();
        }
        World.takes(queue, List.of("1"));
    }

    private static void streamEmpty(World w) throws Exception {
        Queue queue = w.queue();
        Transaction asked = queue.CreateTransaction();
        long started = System.currentTimeMillis();
        AtomicReference<Throwable> failure = new AtomicReference<>();
        Thread asking = new Thread(() -> {
            try {
                TransactionMessagesResponse response = asked.Receive(30, 1);
                World.check(response.getIsError() && response.getError().startsWith("Error 138:"), response.getError());
            } catch (IOException lost) {
                // The SDK forgets the answer when the end of the stream comes right behind it.
            } catch (Throwable other) {
                failure.set(other);
            }
        });
        asking.setDaemon(true);
        asking.start();
        asking.join(10_000);
        World.check(failure.get() == null, failure.get());
        World.check(System.currentTimeMillis() - started > 900, "answered too early");
        ends(asked);
        // For the same reason it may wait for ever: the end takes back what the answer said, without its lock. Such an
        // object is of no use any more.
        Transaction transaction = asking.isAlive() ? queue.CreateTransaction() : asked;
        w.fill(queue, List.of("1"));
        receives(transaction, "1", 30);
        settle(transaction, transaction::AckMessage);
    }

    private static void connected(Queue queue) throws Exception {
        World.until("the connection", () -> {
            try {
                return queue.Ping() != null;
            } catch (io.grpc.StatusRuntimeException gone) {
                return false;
            }
        });
    }

    private static void reconnect(World w, String how) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, World.texts(1, 3));
        World.takes(queue, List.of("1"));
        Main.again(how);
        connected(queue);
        w.fill(queue, List.of("4"));
        World.takes(queue, World.texts(2, 4));
        World.empty(queue);
    }

    private static void reconnectStream(World w, String how) throws Exception {
        Queue queue = w.queue();
        w.fill(queue, World.texts(1, 2));
        Transaction transaction = receives(queue, "1");
        settle(transaction, transaction::AckMessage);
        receives(transaction, "2", 30);
        Main.again(how);
        ends(transaction);
        connected(queue);
        // This object keeps the stream that it lost, and has no other.
        Transaction second = receives(w.queue(), "2");
        settle(second, second::AckMessage);
        World.empty(queue);
    }
}
