// Command go1 plays the scenarios of scenarios.json with kubemq-go v1, unmodified.
//
// It prints one JSON line per scenario. When a scenario needs the server to be killed and started again, it
// prints {"request":"restart"} and waits for a line on its standard input.
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

const sdk = "go1"

// A scenario gets two minutes: most take none, some wait for a delay.
const scenarioTimeout = 2 * time.Minute

type line struct {
	SDK      string `json:"sdk"`
	Scenario string `json:"scenario,omitempty"`
	Result   string `json:"result,omitempty"`
	Detail   string `json:"detail,omitempty"`
	Request  string `json:"request,omitempty"`
}

func say(l line) {
	l.SDK = sdk
	if err := json.NewEncoder(os.Stdout).Encode(l); err != nil {
		panic(err)
	}
}

type broken struct{ text string }

// check ends the scenario as failed unless ok.
func check(ok bool, format string, values ...any) {
	if !ok {
		stack := strings.Split(string(debug.Stack()), "\n")
		where := ""
		for _, frame := range stack {
			if strings.Contains(frame, "scenarios.go") {
				where = frame[strings.LastIndex(frame, "/")+1:]
				break
			}
		}
		panic(broken{where + ": " + fmt.Sprintf(format, values...)})
	}
}

func must(err error) {
	check(err == nil, "%v", err)
}

func play(id string, scenario func(*world), w *world) (result, detail string) {
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
	ctx, cancel := context.WithTimeout(context.Background(), scenarioTimeout)
	defer cancel()
	w.ctx, w.queue = ctx, sdk+"."+id
	scenario(w)
	return "passed", ""
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go1 <host:port> <scenarios.json>")
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
	file, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	var data struct {
		Scenarios []map[string]any `json:"scenarios"`
	}
	if err := json.Unmarshal(file, &data); err != nil {
		panic(err)
	}
	input := bufio.NewReader(os.Stdin)
	w := &world{host: host, port: port, restart: func() {
		say(line{Request: "restart"})
		if _, err := input.ReadString('\n'); err != nil {
			panic(err)
		}
	}}
	for _, entry := range data.Scenarios {
		id := entry["id"].(string)
		if only := os.Getenv("ONLY"); only != "" && only != id {
			continue
		}
		if reason, ok := entry[sdk].(string); ok {
			say(line{Scenario: id, Result: "left out", Detail: reason})
			continue
		}
		scenario, ok := scenarios[id]
		if !ok {
			say(line{Scenario: id, Result: "failed", Detail: "the runner does not know this scenario"})
			continue
		}
		started := time.Now()
		result, detail := play(id, scenario, w)
		if result == "passed" {
			detail = fmt.Sprintf("%d ms", time.Since(started).Milliseconds())
		}
		say(line{Scenario: id, Result: result, Detail: detail})
	}
}
