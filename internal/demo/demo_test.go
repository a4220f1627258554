package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"syncd/internal/lab"
)

func TestDemo(t *testing.T) {
	if err := lab.Usable(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { // after all parts
		for _, dir := range []string{"/run/netns", "/run"} {
			if left, _ := filepath.Glob(filepath.Join(dir, fmt.Sprintf("%s%d-*", prefix, os.Getpid()))); len(left) > 0 {
				t.Errorf("left over: %q", left)
			}
		}
	})
	for _, tt := range []struct {
		name    string
		standIn string
		options Options
		after   time.Duration // cancel then
		want    error
		last    string // line of the output, fields with single spaces
	}{
		{name: "good", standIn: "good", last: "total 60 0 60 "},
		{name: "forgetful", standIn: "forgetful", options: Options{withOnly: true}, want: ErrLost, last: "total 60 0"},
		{name: "without", options: Options{WithoutOnly: true}, last: "total 60 0"},
		{name: "canceled", standIn: "good", after: 2 * time.Second, want: context.Canceled},
		{name: "broken", standIn: "broken", options: Options{withOnly: true}, want: errEnded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			o := tt.options
			o.Out, o.Connections = &out, 60
			if tt.standIn != "" {
				o.Executable = filepath.Join(t.TempDir(), standInPrefix+tt.standIn)
				if err := os.Symlink(executable(t), o.Executable); err != nil {
					t.Fatal(err)
				}
			}
			ctx := t.Context()
			if tt.after != 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, tt.after, context.Canceled)
				defer cancel()
			}
			err := Run(ctx, o)
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			found := false
			for line := range strings.Lines(out.String()) {
				found = found || strings.HasPrefix(strings.Join(strings.Fields(line), " "), tt.last)
			}
			if !found {
				t.Errorf("no line begins with %q", tt.last)
			}
			t.Logf("%v\n%s", err, &out)
		})
	}
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}
