package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"syncd/internal/channel"
	"syncd/internal/config"
	"syncd/internal/ctl"
	"syncd/internal/ctnetlink"
	"syncd/internal/host"
)

// ErrCheck is returned by Check when something must be mended.
var ErrCheck = errors.New("the check found errors")

// CheckOptions says what to check and how to tell.
type CheckOptions struct {
	ConfigPath string
	Out        io.Writer
	JSON       bool
	Colour     bool   // of the text
	Strict     bool   // warnings fail the check
	PrintHost  bool   // print the profile of this host instead of a report
	Compare    string // file with the profile of a peer; "" for none, "-" for In
	In         io.Reader
}

// daemonTimeout bounds how long a daemon is asked for what it knows.
const daemonTimeout = 3 * time.Second

// Check reads a configuration and looks at the host, and writes what it finds. It
// returns ErrCheck, or the error of the configuration, when the daemon would not start
// or something is wrong. It changes nothing; where no daemon runs it opens the sockets
// of the links, as the daemon would, and closes them again.
func Check(ctx context.Context, o CheckOptions) error {
	cfg, err := config.Load(o.ConfigPath)
	if err != nil {
		if !o.JSON || o.PrintHost {
			return err
		}
		// Whoever reads JSON finds the reason there.
		return o.report(&host.Report{Config: o.ConfigPath, Findings: []host.Finding{{
			ID: "config.file", Verdict: host.Error, Found: err.Error(), Want: "a valid configuration", Why: "the daemon does not start with this configuration",
		}}})
	}
	if cfg.Node.Name == "" {
		cfg.Node.Name, _ = os.Hostname()
	}
	peer, err := o.peerProfile()
	if err != nil {
		return err
	}
	setup := hostSetup(cfg)
	facts := host.Read(ctx, setup)
	_, _, facts.Ctnetlink = ctnetlink.Count(0)
	mine := host.NewProfile(facts, setup)
	if o.PrintHost {
		return mine.Write(o.Out)
	}
	running, findings := askDaemon(ctx, cfg, facts)
	if !running {
		facts.LinkErrs = tryLinks(cfg)
	}
	rep := &host.Report{Node: cfg.Node.Name, Config: o.ConfigPath, Kernel: facts.Kernel}
	rep.Findings = append(findings, checkConfig(o.ConfigPath, cfg)...)
	rep.Findings = append(rep.Findings, host.Judge(facts, setup)...)
	if peer != nil {
		rep.Findings = append(rep.Findings, host.Compare(mine, peer)...)
	}
	return o.report(rep)
}

// report completes the report and writes it.
func (o *CheckOptions) report(rep *host.Report) error {
	rep.Finish(o.Strict)
	var err error
	if o.JSON {
		err = rep.WriteJSON(o.Out)
	} else {
		err = rep.WriteText(o.Out, o.Colour)
	}
	switch {
	case err != nil:
		return err
	case rep.OK:
		return nil
	case rep.Counts.Errors == 0:
		return errors.New("the check found warnings")
	}
	return ErrCheck
}

// peerProfile reads the profile of the peer, if one is to be compared.
func (o *CheckOptions) peerProfile() (*host.Profile, error) {
	if o.Compare == "" {
		return nil, nil
	}
	in, name := o.In, "standard input"
	if o.Compare != "-" {
		f, err := os.Open(o.Compare)
		if err != nil {
			return nil, fmt.Errorf("compare: %w", err)
		}
		defer f.Close()
		in, name = f, o.Compare
	}
	p, err := host.ReadProfile(in)
	if err != nil {
		return nil, fmt.Errorf("compare: %s: %w", name, err)
	}
	return p, nil
}

// hostSetup returns what a configuration asks of the host.
func hostSetup(cfg *config.Config) *host.Setup {
	s := &host.Setup{
		Node: cfg.Node.Name, Mode: string(cfg.Sync.Mode), Wire: string(cfg.Sync.Wire),
		EventBuffer: cfg.Events.Buffer, EventBufferMax: cfg.Events.BufferMax,
		Labels: cfg.Filter.Labels, MarkMask: cfg.Filter.MarkMask,
		Expectations: host.Helpers{All: cfg.Filter.Expectations.All, Names: cfg.Filter.Expectations.Helpers},
		Instant:      cfg.Takeover.Mode == config.TakeoverInstant,
		UsedFirst:    cfg.Commit.UsedFirst && cfg.Takeover.Mode == config.TakeoverCommit,
	}
	for i := range cfg.Links {
		l := &cfg.Links[i]
		s.Links = append(s.Links, host.Link{
			Interface: l.Interface, Local: l.Local, Peers: l.Peers, Group: l.Group, Port: l.Port,
			RecvBuffer: l.RecvBuffer, SendBuffer: l.SendBuffer,
		})
	}
	return s
}

// askDaemon puts what a running daemon knows of the peers into the facts, and reports
// whether one runs. One that runs but does not answer is a finding.
func askDaemon(ctx context.Context, cfg *config.Config, facts *host.Facts) (running bool, findings []host.Finding) {
	ctx, cancel := context.WithTimeout(ctx, daemonTimeout)
	defer cancel()
	var st *ctl.Status
	client, err := ctl.Dial(cfg.Node.Socket)
	if err == nil {
		st, err = client.Status(ctx)
	}
	switch {
	case errors.Is(err, ctl.ErrNoDaemon):
		facts.Daemon.None = "no daemon runs"
		return false, nil
	case err != nil:
		facts.Daemon.None = "the daemon does not answer"
		return true, []host.Finding{{ID: "peer.daemon", Verdict: host.Unknown, Found: err.Error(), Want: "an answer", Why: "what the daemon knows of its peers is not known here"}}
	}
	for _, p := range st.Peers {
		if p.State == ctl.PeerUnheard {
			continue
		}
		facts.Daemon.Peers = append(facts.Daemon.Peers, host.Peer{Name: p.Name, Flows: p.Flows})
	}
	return true, nil
}

// tryLinks opens the sockets of each link for a moment.
func tryLinks(cfg *config.Config) []string {
	errs := make([]string, len(cfg.Links))
	var open []*channel.Link // all at once, as the daemon has them
	for i := range cfg.Links {
		l, err := channel.Open(linkConfig(&cfg.Links[i]))
		if err != nil {
			errs[i] = err.Error()
			continue
		}
		open = append(open, l)
	}
	for _, l := range open {
		l.Close()
	}
	return errs
}

// checkConfig judges what of the configuration depends on files.
func checkConfig(path string, cfg *config.Config) []host.Finding {
	all := []host.Finding{{ID: "config.file", Found: fmt.Sprintf("valid, %d links", len(cfg.Links)), Want: "a valid configuration", Why: path}}
	if len(cfg.Links) == 1 {
		all[0].Found = "valid, 1 link"
	}
	socket := host.Finding{ID: "config.socket", Found: cfg.Node.Socket, Want: "a path in a directory that exists", Why: "syncd ctl talks to the daemon there"}
	if dir := filepath.Dir(cfg.Node.Socket); cfg.Node.Socket[0] != '@' {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			// systemd makes the usual one (RuntimeDirectory=) when it starts the service.
			socket.Verdict, socket.Found = host.Note, dir+" does not exist"
			socket.Why = "the daemon does not start without it; the service's unit makes /run/syncd"
			socket.Fix = "mkdir -m 0750 " + dir
			if dir != filepath.Dir(config.Default().Node.Socket) {
				socket.Verdict = host.Error
				socket.Why = "the daemon does not start without the directory of its socket"
			}
		}
	}
	all = append(all, socket, checkKeys(cfg))
	if cfg.Node.StateDir != "" {
		dir := host.Finding{ID: "config.state_dir", Found: cfg.Node.StateDir, Want: "a directory", Why: "the state of the peers and the role outlive a restart of the daemon there"}
		if st, err := os.Stat(cfg.Node.StateDir); err != nil || !st.IsDir() {
			dir.Verdict, dir.Found, dir.Fix = host.Note, cfg.Node.StateDir+" is missing", "mkdir -m 0750 "+cfg.Node.StateDir
			dir.Why = "a restart of the daemon forgets what it holds of its peers; the service's unit makes /var/lib/syncd"
		}
		all = append(all, dir)
	}
	return all
}

func checkKeys(cfg *config.Config) host.Finding {
	out := host.Finding{ID: "config.keys", Want: "sealed datagrams", Why: "nobody on the link can read or forge"}
	switch {
	case cfg.Sync.Wire == config.WireConntrackd:
		out.Verdict, out.Found = host.Note, "plain datagrams of conntrackd's dialect"
		out.Why = "anyone on the link can read and forge them, and nothing proves that the nodes are in step"
		return out
	case len(cfg.Sync.Keys) == 0:
		out.Verdict, out.Found = host.Warning, "no key (insecure = true)"
		out.Why = "anyone on the link can read and forge what the nodes send"
		out.Fix = "syncd key /etc/syncd/sync.key"
		return out
	}
	keys, err := readKeys(cfg)
	if err != nil {
		out.Verdict, out.Found = host.Error, err.Error()
		out.Why = "the daemon does not start without its keys"
		return out
	}
	out.Found = fmt.Sprintf("%d keys", len(keys))
	if len(keys) == 1 {
		out.Found = "1 key"
	}
	return out
}
