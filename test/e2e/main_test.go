package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"syncd/internal/lab"
)

// prefix begins the names of all namespaces of these tests.
const prefix = "syncd-e2e-"

// bin is the daemon under test, built from this tree.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	// These tests wait most of the time; each has its own namespaces.
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel {
		_ = flag.Set("test.parallel", "8")
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "syncd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "syncd")
	args := []string{"build", "-buildvcs=false", "-o", bin}
	env := append(os.Environ(), "CGO_ENABLED=0") // as it is shipped
	if raceEnabled {
		args, env = append(args, "-race"), os.Environ()
	}
	build := exec.Command("go", append(args, "syncd/cmd/syncd")...)
	build.Env = env
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build syncd: %v\n%s", err, out)
		return 1
	}
	if swept, err := lab.Sweep(prefix); err != nil || len(swept) > 0 {
		fmt.Fprintln(os.Stderr, "leftovers of an earlier run:", swept, err)
	}
	return m.Run()
}

// missing skips a test for want of something. On CI that is a failure: there
// everything is there.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// need skips the test where one of the programs is not installed.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, "%s is not installed (make peers installs it)", p)
		}
	}
}

// newLab returns an empty lab that goes with the test.
func newLab(t testing.TB) *lab.Lab {
	t.Helper()
	if err := lab.Usable(); err != nil {
		missing(t, "no lab: %v", err)
	}
	l, err := lab.New(prefix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// ok ends the test at the first error.
func ok(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}
