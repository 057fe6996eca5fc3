import io.kubemq.sdk.queue.TransactionMessagesResponse;

/** A client that receives a message over the old stream, says so, and never settles it. */
final class Hold {
    private Hold() {}

    public static void main(String[] arguments) throws Exception {
        World world = new World(arguments[0], arguments[1]);
        TransactionMessagesResponse response = world.queue().CreateTransaction().Receive(60, 10);
        System.out.println(response.getIsError() ? response.getError() : "held");
        Thread.sleep(60_000);
    }
}
