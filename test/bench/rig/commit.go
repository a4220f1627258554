package rig

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"syncd/internal/ctl"
)

// Committed is what a commit did, as the daemon tells it.
type Committed struct {
	Wall    time.Duration // until the command returned
	Took    time.Duration // by the daemon's own words
	Created uint64
	There   uint64 // were there already
	Refused uint64
}

// Commit puts the external cache into the kernel.
func (d *Daemon) Commit() (c Committed, err error) {
	if d.Kind == Conntrackd {
		return d.conntrackdCommit()
	}
	begin := time.Now()
	r, err := d.client.Commit(context.Background(), ctl.CommitOptions{})
	if err != nil {
		return c, err
	}
	t := r.Total()
	return Committed{time.Since(begin), time.Duration(r.DurationS * float64(time.Second)), t.Created, t.Updated + t.AlreadyThere, t.Refused}, nil
}

// conntrackdCommit runs the client, which returns when the commit is done. What it
// did stands in the log.
func (d *Daemon) conntrackdCommit() (c Committed, err error) {
	before, err := os.ReadFile(d.log)
	if err != nil {
		return c, err
	}
	begin := time.Now()
	out, err := d.Node.Output(d.Node.Command("conntrackd", "-C", d.config, "-c"))
	if err != nil {
		return c, fmt.Errorf("conntrackd -c: %w: %s", err, out)
	}
	c.Wall = time.Since(begin)
	var log string
	if err := Wait(30*time.Second, "conntrackd logs its commit", func() (bool, error) {
		b, err := os.ReadFile(d.log)
		if err == nil {
			log = string(b[len(before):])
		}
		return strings.Contains(log, "commit has taken"), err
	}); err != nil {
		return c, err
	}
	if c.Took, err = conntrackdTook(log); err != nil {
		return c, err
	}
	if c.Created, err = after(log, "Committed"); err != nil {
		return c, err
	}
	if strings.Contains(log, "can't be committed") {
		_, rest, _ := strings.Cut(log, "can't be committed")
		return c, fmt.Errorf("conntrackd refused entries: %q", rest)
	}
	return c, nil
}

// conntrackdTook reads how long a commit has taken from the log that conntrackd has
// written of it.
func conntrackdTook(log string) (time.Duration, error) {
	_, took, _ := strings.Cut(log, "commit has taken ")
	took, _, _ = strings.Cut(took, " ")
	s, err := strconv.ParseFloat(took, 64)
	if err != nil {
		return 0, fmt.Errorf("conntrackd's log: %q: %w", log, err)
	}
	return time.Duration(s * float64(time.Second)), nil
}

// LastCommit returns how long the only commit of the daemon so far has taken, by its own
// words.
func (d *Daemon) LastCommit() (time.Duration, error) {
	if d.Kind == Conntrackd {
		log, err := os.ReadFile(d.log)
		if err != nil {
			return 0, err
		}
		return conntrackdTook(string(log))
	}
	s, err := d.Status()
	if err != nil {
		return 0, err
	}
	if s.LastCommit == nil {
		return 0, fmt.Errorf("%s on %s has made no commit", d.Kind, d.Node.Name())
	}
	return time.Duration(s.LastCommit.DurationS * float64(time.Second)), nil
}

// Reread makes the daemon read its kernel's whole table again, and returns how long
// that took.
func (d *Daemon) Reread() (time.Duration, error) {
	begin := time.Now()
	if d.Kind != Conntrackd {
		_, err := d.client.Resync(context.Background(), true)
		return time.Since(begin), err
	}
	out, err := d.Node.Output(d.Node.Command("conntrackd", "-C", d.config, "-R"))
	if err != nil {
		return 0, fmt.Errorf("conntrackd -R: %w: %s", err, out)
	}
	// It reads the table at one go, and answers nobody meanwhile.
	_, err = d.ask(askRuntime)
	return time.Since(begin), err
}
