// Package rigtest is what the tests of all benchmarks need.
package rigtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"syncd/internal/lab"
)

// Build builds syncd and returns the program's path. It skips the test where no rig can be
// built or one of the programs is not installed, and where only short tests are wanted; on
// CI (CI=true) what is missing is a failure.
func Build(t testing.TB, programs ...string) (bin string) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs real daemons")
	}
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	if err := lab.Usable(); err != nil {
		missing("no lab: %v", err)
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			missing("%s is not installed (make peers installs it)", name)
		}
	}
	bin = filepath.Join(t.TempDir(), "syncd")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "syncd/cmd/syncd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is shipped
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build syncd: %v\n%s", err, out)
	}
	return bin
}
