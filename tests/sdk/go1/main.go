// Command go1 plays scenarios with kubemq-go v1, unmodified.
//
// It prints one JSON line per scenario. When a scenario needs the server to end and to be started again, it
// prints {"request":"kill"} or {"request":"stop"} and waits for a line on its standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// A scenario gets two minutes: most take none, some wait for a delay.
const scenarioTimeout = 2 * time.Minute

type line struct {
	Scenario string `json:"scenario,omitempty"`
	Result   string `json:"result,omitempty"`
	Detail   string `json:"detail,omitempty"`
	Request  string `json:"request,omitempty"`
}

func say(l line) {
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		panic(err)
	}
}

type broken struct{ text string }

// check ends the scenario as failed unless ok.
func check(ok bool, format string, values ...any) {
	if !ok {
		panic(broken{where() + ": " + fmt.Sprintf(format, values...)})
	}
}

// where names the line of a scenario that a check stands in.
func where() string {
	for _, frame := range strings.Split(string(debug.Stack()), "\n") {
		if strings.Contains(frame, "/go1/") && !strings.Contains(frame, "/go1/main.go") && !strings.Contains(frame, "/go1/inbox.go") {
			return frame[strings.LastIndex(frame, "/")+1:]
		}
	}
	return "?"
}

func must(err error) {
	check(err == nil, "%v", err)
}

func play(id string, w *world) (result, detail string) {
	defer func() {
		if thrown := recover(); thrown != nil {
			result = "failed"
			if b, ok := thrown.(broken); ok {
				detail = b.text
			} else {
				detail = fmt.Sprintf("panic: %v\n%s", thrown, debug.Stack())
			}
		}
	}()
	scenario, ok := scenarios[id]
	check(ok, "the runner does not know this scenario")
	ctx, cancel := context.WithTimeout(context.Background(), scenarioTimeout)
	defer cancel()
	w.ctx, w.queue = ctx, "go1."+id
	started := time.Now()
	scenario(w)
	return "passed", fmt.Sprintf("%d ms", time.Since(started).Milliseconds())
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: go1 <host:port> <scenario>…")
		os.Exit(2)
	}
	host, portText, err := net.SplitHostPort(os.Args[1])
	if err != nil {
		panic(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		panic(err)
	}
	input := bufio.NewReader(os.Stdin)
	w := &world{host: host, port: port, again: func(how string) {
		say(line{Request: how})
		if _, err := input.ReadString('\n'); err != nil {
			panic(err)
		}
	}}
	for _, id := range os.Args[2:] {
		result, detail := play(id, w)
		say(line{Scenario: id, Result: result, Detail: detail})
	}
}
