package ctl

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files of testdata anew")

// TestMain runs the tests and then looks for goroutines that outlived them. With
// holdEnv set this process is not a test but one that holds a socket until it is
// killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(holdEnv); path != "" {
		if _, err := Listen(path, nil); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("listening")
		select {}
	}
	before := runtime.NumGoroutine()
	code := m.Run()
	for deadline := time.Now().Add(5 * time.Second); code == 0 && runtime.NumGoroutine() > before; {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "%d goroutines were left behind:\n%s\n", runtime.NumGoroutine()-before, buf[:runtime.Stack(buf, true)])
			code = 1
		}
		time.Sleep(10 * time.Millisecond)
	}
	os.Exit(code)
}
