import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * Plays scenarios with the Java SDK, unmodified.
 *
 * <p>Prints one JSON line per scenario. When a scenario needs the server to end and to be started again, it prints
 * {"request":"kill"} or {"request":"stop"} and waits for a line on its standard input.
 */
final class Main {
    /** A scenario gets two minutes: most take none, some wait for a delay. */
    private static final int PATIENCE_SECONDS = 120;

    private static final BufferedReader INPUT = new BufferedReader(new InputStreamReader(System.in));

    private Main() {}

    interface Scenario {
        void play(World world) throws Exception;
    }

    static void again(String how) throws IOException {
        System.out.println("{\"request\":\"" + how + "\"}");
        INPUT.readLine();
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char letter : text.toCharArray()) {
            if (letter == '"' || letter == '\\') {
                out.append('\\').append(letter);
            } else if (letter < ' ') {
                out.append(String.format("\\u%04x", (int) letter));
            } else {
                out.append(letter);
            }
        }
        return out.append('"').toString();
    }

    private static void say(String scenario, String result, String detail) {
        System.out.println("{\"scenario\":" + quoted(scenario) + ",\"result\":" + quoted(result) + ",\"detail\":"
            + quoted(detail) + "}");
    }

    /** Names the line of a scenario that an error came from. */
    private static String where(Throwable error) {
        for (StackTraceElement frame : error.getStackTrace()) {
            if ("Queues.java".equals(frame.getFileName()) || "Patterns.java".equals(frame.getFileName())) {
                return frame.getFileName() + ":" + frame.getLineNumber();
            }
        }
        return "?";
    }

    public static void main(String[] arguments) throws InterruptedException {
        Map<String, Scenario> scenarios = new LinkedHashMap<>(Queues.SCENARIOS);
        scenarios.putAll(Patterns.SCENARIOS);
        ExecutorService executor = Executors.newCachedThreadPool();
        for (int index = 1; index < arguments.length; index++) {
            String id = arguments[index];
            Scenario scenario = scenarios.get(id);
            if (scenario == null) {
                say(id, "failed", "the runner does not know this scenario");
                continue;
            }
            World world = new World(arguments[0], "java1." + id);
            long started = System.nanoTime();
            Future<?> played = executor.submit(() -> {
                scenario.play(world);
                return null;
            });
            try {
                played.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
                say(id, "passed", (System.nanoTime() - started) / 1_000_000 + " ms");
            } catch (ExecutionException error) {
                Throwable cause = error.getCause();
                say(id, "failed", where(cause) + ": " + cause);
            } catch (TimeoutException error) {
                played.cancel(true);
                say(id, "failed", "not through after " + PATIENCE_SECONDS + " s");
            }
        }
        // Threads of the SDK would keep the process alive.
        System.exit(0);
    }
}
