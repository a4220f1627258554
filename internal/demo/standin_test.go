package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/vishvananda/netns"

	"syncd/internal/ctl"
	"syncd/internal/lab/labtest"
)

// standInPrefix begins the names under which this test binary stands in for
// syncd. The rest says how well it does: "good", "forgetful" or "broken".
const standInPrefix = "stand-in-"

func TestMain(m *testing.M) {
	if how, ok := strings.CutPrefix(filepath.Base(os.Args[0]), standInPrefix); ok {
		if err := runStandIn(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// standIn is a daemon that copies the other firewall's flows by hand when it
// becomes primary: the demo can be tested without trusting syncd.
type standIn struct {
	ctl.Node // what the demo does not use
	name     string
	how      string
	own      netns.NsHandle
	peer     netns.NsHandle
	role     string
}

func runStandIn(how string) error {
	if how == "broken" {
		return errors.New("I am broken")
	}
	if len(os.Args) != 4 || os.Args[1] != "run" || os.Args[2] != "-c" {
		return fmt.Errorf("arguments are %q, want run -c FILE", os.Args[1:])
	}
	var c struct{ Node struct{ Name, Socket string } }
	if _, err := toml.DecodeFile(os.Args[3], &c); err != nil {
		return err
	}
	s := &standIn{name: c.Node.Name, how: how}
	peer := map[string]string{"fw1": "fw2", "fw2": "fw1"}[s.name]
	lab := strings.TrimSuffix(filepath.Base(filepath.Dir(c.Node.Socket)), "files")
	var err error
	if s.own, err = netns.Get(); err != nil {
		return err
	}
	if s.peer, err = netns.GetFromName(lab + peer); err != nil {
		return err
	}
	server, err := ctl.Listen(c.Node.Socket, nil)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return server.Serve(ctx, s)
}

func (s *standIn) Status(context.Context) (*ctl.Status, error) {
	n, err := labtest.CountFlows(int(s.own))
	if err != nil {
		return nil, err
	}
	p, err := labtest.CountFlows(int(s.peer))
	return &ctl.Status{
		Node: s.name, Role: s.role, InSync: true,
		Internal: ctl.CacheStatus{Entries: uint64(n)},
		External: ctl.CacheStatus{Entries: uint64(p)},
	}, err
}

func (s *standIn) SetRole(_ context.Context, role string, _ ctl.ProgressFunc) (*ctl.RoleReport, error) {
	r := &ctl.RoleReport{Role: role, Before: s.role}
	s.role = role
	if s.name == "fw2" && role == ctl.RolePrimary && s.how != "forgetful" {
		begin := time.Now()
		n, err := labtest.CopyFlows(int(s.peer), int(s.own))
		if err != nil {
			return nil, err
		}
		r.Commit = &ctl.CommitReport{
			DurationS: time.Since(begin).Seconds(),
			Flows:     ctl.CommitCount{Entries: uint64(n), Created: uint64(n)},
		}
	}
	return r, nil
}
