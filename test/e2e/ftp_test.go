package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"syncd/internal/ctl"
	"syncd/internal/lab"
)

// ftpPatience bounds every step of a transfer. A control connection whose sequence
// numbers are wrong only hangs.
const ftpPatience = 10 * time.Second

// ftpServer serves files over FTP (RFC 959, RFC 2428), as far as a helper of the
// kernel looks at it: USER, PASV, EPSV, PORT, EPRT, RETR, NOOP and QUIT.
type ftpServer struct {
	node   *lab.Node
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	l      net.Listener
}

func serveFTP(t testing.TB, n *lab.Node, at netip.AddrPort) {
	t.Helper()
	l, err := n.Listen(at)
	ok(t, err)
	s := &ftpServer{node: n, l: l}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.serve)
	t.Cleanup(func() {
		s.cancel()
		_ = l.Close()
		s.wg.Wait()
	})
}

func (s *ftpServer) serve() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.wg.Go(func() {
			stop := context.AfterFunc(s.ctx, func() { _ = c.Close() })
			defer stop()
			defer c.Close()
			// The client judges what became of it.
			_ = (&ftpSession{server: s, control: c, own: addrOf(c.LocalAddr())}).run()
		})
	}
}

func addrOf(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() }

// ftpSession is one control connection on the server.
type ftpSession struct {
	server  *ftpServer
	control net.Conn
	own     netip.Addr
	passive net.Listener   // where the client is to connect to, or nil
	active  netip.AddrPort // or where it listens
}

func (s *ftpSession) say(format string, args ...any) error {
	_, err := fmt.Fprintf(s.control, format+"\r\n", args...)
	return err
}

func (s *ftpSession) run() error {
	defer s.forget()
	if err := s.say("220 ready"); err != nil {
		return err
	}
	for r := bufio.NewReader(s.control); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "USER":
			err = s.say("230 welcome")
		case "PASV", "EPSV":
			err = s.listen(verb)
		case "PORT", "EPRT":
			s.forget()
			if s.active, err = parsePort(verb, arg); err != nil {
				err = s.say("501 %v", err)
			} else {
				err = s.say("200 will connect to %v", s.active)
			}
		case "RETR":
			err = s.send(arg)
		case "NOOP":
			err = s.say("200 nothing done")
		case "QUIT":
			return s.say("221 bye")
		default: // also a verb that lost its first octets
			err = s.say("500 %q is no command", verb)
		}
		if err != nil {
			return err
		}
	}
}

func (s *ftpSession) forget() {
	if s.passive != nil {
		_ = s.passive.Close()
	}
	s.passive, s.active = nil, netip.AddrPort{}
}

func (s *ftpSession) listen(verb string) (err error) {
	s.forget()
	if s.passive, err = s.server.node.Listen(netip.AddrPortFrom(s.own, 0)); err != nil {
		return err
	}
	port := s.passive.Addr().(*net.TCPAddr).Port
	if verb == "EPSV" {
		return s.say("229 Entering Extended Passive Mode (|||%d|)", port)
	}
	return s.say("227 Entering Passive Mode (%s,%d,%d).", strings.ReplaceAll(s.own.String(), ".", ","), port>>8, port&0xff)
}

// parsePort reads the argument of PORT or EPRT.
func parsePort(verb, arg string) (netip.AddrPort, error) {
	var host, port string
	if verb == "EPRT" { // |2|2001:db8::1|5282|
		f := strings.Split(arg, "|")
		if len(f) != 5 {
			return netip.AddrPort{}, fmt.Errorf("bad argument %q", arg)
		}
		host, port = f[2], f[3]
	} else {
		f := strings.Split(arg, ",")
		if len(f) != 6 {
			return netip.AddrPort{}, fmt.Errorf("bad argument %q", arg)
		}
		hi, err1 := strconv.Atoi(f[4])
		lo, err2 := strconv.Atoi(f[5])
		if err := errors.Join(err1, err2); err != nil {
			return netip.AddrPort{}, err
		}
		host, port = strings.Join(f[:4], "."), strconv.Itoa(hi<<8|lo)
	}
	return netip.ParseAddrPort(net.JoinHostPort(host, port))
}

func (s *ftpSession) send(name string) error {
	if err := s.say("150 here it comes"); err != nil {
		return err
	}
	c, err := s.data()
	if err != nil {
		return s.say("425 no data connection: %v", err)
	}
	defer s.forget()
	_, err = c.Write(ftpFile(name))
	if err = errors.Join(err, c.Close()); err != nil {
		return s.say("426 transfer aborted: %v", err)
	}
	return s.say("226 done")
}

func (s *ftpSession) data() (net.Conn, error) {
	if s.passive != nil {
		_ = s.passive.(*net.TCPListener).SetDeadline(time.Now().Add(ftpPatience))
		return s.passive.Accept()
	}
	if !s.active.IsValid() {
		return nil, errors.New("neither PASV nor PORT")
	}
	ctx, cancel := context.WithTimeout(s.server.ctx, ftpPatience)
	defer cancel()
	return s.server.node.Dial(ctx, "tcp", s.own, s.active)
}

// ftpFile is the content of a file, 300 KB: more than windows at their beginning.
func ftpFile(name string) []byte {
	return bytes.Repeat([]byte(name+"\n"), 300_000/(len(name)+1))
}

// ftpClient is one control connection on the client.
type ftpClient struct {
	node    *lab.Node
	own     netip.Addr
	server  netip.AddrPort
	active  bool
	control net.Conn
	r       *bufio.Reader

	listener net.Listener   // of an active transfer
	to       netip.AddrPort // of a passive one
}

func (c *ftpClient) String() string {
	how := map[bool]string{false: "passive", true: "active"}[c.active]
	return fmt.Sprintf("%s from %s", how, c.own)
}

// open connects and logs in.
func (c *ftpClient) open(ctx context.Context) (err error) {
	if c.control, err = c.node.Dial(ctx, "tcp", c.own, c.server); err != nil {
		return err
	}
	c.r = bufio.NewReader(c.control)
	if _, err = c.answer("220"); err == nil {
		_, err = c.command("230", "USER anonymous")
	}
	return err
}

func (c *ftpClient) close() {
	if c.listener != nil {
		_ = c.listener.Close()
	}
	if c.control != nil {
		_ = c.control.Close()
	}
}

// command sends a command and wants this code for an answer.
func (c *ftpClient) command(code, format string, args ...any) (string, error) {
	if _, err := fmt.Fprintf(c.control, format+"\r\n", args...); err != nil {
		return "", err
	}
	return c.answer(code)
}

func (c *ftpClient) answer(code string) (string, error) {
	if err := c.control.SetReadDeadline(time.Now().Add(ftpPatience)); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("instead of answer %s: %w", code, err)
	}
	if line = strings.TrimSpace(line); !strings.HasPrefix(line, code+" ") {
		return "", fmt.Errorf("instead of answer %s: %q", code, line)
	}
	return line, nil
}

// prepare agrees on a data connection without opening it.
func (c *ftpClient) prepare() error {
	switch {
	case c.active:
		if c.listener != nil {
			_ = c.listener.Close()
		}
		var err error
		if c.listener, err = c.node.Listen(netip.AddrPortFrom(c.own, 0)); err != nil {
			return err
		}
		port := c.listener.Addr().(*net.TCPAddr).Port
		if c.own.Is6() {
			_, err = c.command("200", "EPRT |2|%s|%d|", c.own, port)
		} else {
			_, err = c.command("200", "PORT %s,%d,%d", strings.ReplaceAll(c.own.String(), ".", ","), port>>8, port&0xff)
		}
		return err
	case c.own.Is6():
		line, err := c.command("229", "EPSV")
		if err != nil {
			return err
		}
		f := strings.Split(line, "|")
		if len(f) != 5 {
			return fmt.Errorf("bad answer %q", line)
		}
		port, err := strconv.ParseUint(f[3], 10, 16)
		c.to = netip.AddrPortFrom(c.server.Addr(), uint16(port))
		return err
	}
	line, err := c.command("227", "PASV")
	if err != nil {
		return err
	}
	_, arg, _ := strings.Cut(line, "(")
	arg, _, _ = strings.Cut(arg, ")")
	c.to, err = parsePort("PORT", arg)
	return err
}

// fetch opens the data connection that was agreed on, and gets a file over it.
func (c *ftpClient) fetch(name string) error {
	if _, err := c.command("150", "RETR %s", name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), ftpPatience)
	defer cancel()
	var data net.Conn
	var err error
	if c.active {
		_ = c.listener.(*net.TCPListener).SetDeadline(time.Now().Add(ftpPatience))
		data, err = c.listener.Accept()
	} else {
		data, err = c.node.Dial(ctx, "tcp", c.own, c.to)
	}
	if err != nil {
		return fmt.Errorf("data connection: %w", err)
	}
	defer data.Close()
	if err := data.SetReadDeadline(time.Now().Add(ftpPatience)); err != nil {
		return err
	}
	got, err := io.ReadAll(data)
	if err != nil {
		return fmt.Errorf("data connection: %w", err)
	}
	if want := ftpFile(name); !bytes.Equal(got, want) {
		return fmt.Errorf("%d octets arrived of %d, or others", len(got), len(want))
	}
	_, err = c.answer("226")
	return err
}

// transfer is prepare and fetch.
func (c *ftpClient) transfer(name string) error {
	if err := c.prepare(); err != nil {
		return fmt.Errorf("agree on a data connection: %w", err)
	}
	return c.fetch(name)
}

// loadHelper gives connections to the service the kernel's helper of FTP.
func loadHelper(t testing.TB, nodes ...*lab.Node) {
	t.Helper()
	need(t, "nft")
	for _, n := range nodes {
		cmd := n.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(helperRules, lab.PortService))
		if out, err := n.Output(cmd); err != nil {
			t.Fatalf("nft: %v\n%s", err, out)
		}
	}
}

// expectations returns how many expectations a daemon holds in a cache.
func (f *firewall) expectations(which string) (n int) {
	f.t.Helper()
	if f.real {
		for line := range strings.Lines(f.conntrackd("-"+which[:1], "expect")) {
			if strings.Contains(line, "master-src=") {
				n++
			}
		}
		return n
	}
	ok(f.t, f.ctl.Dump(context.Background(), which, func(d *ctl.DumpEntry) error {
		if d.Expect != nil && !d.Dead {
			n++
		}
		return nil
	}))
	return n
}

// A transfer is agreed on before the takeover, and its data connection begins after it
// on the other node, in passive and in active mode, routed and with source NAT, over
// IPv4 and IPv6; and the control connection goes on to carry further ones.
func TestFTPTakeover(t *testing.T) {
	for _, tt := range []struct {
		name          string
		first, second daemonKind
		sealed        bool
		instant       bool // and the script comes after the transfer that was agreed on
	}{
		{"syncd dialect", ours, ours, true, false},
		{"conntrackd dialect", ours, ours, false, false},
		{"conntrackd dies, syncd lives", theirs, ours, false, false},
		{"syncd dies, conntrackd lives", ours, theirs, false, false},
		{"instant", ours, ours, true, true},
		{"conntrackd dialect, instant", ours, ours, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			testFTPTakeover(t, tt.first, tt.second, tt.sealed, tt.instant)
		})
	}
}

func testFTPTakeover(t *testing.T, first, second daemonKind, sealed, atOnce bool) {
	p := newPair(t)
	loadHelper(t, p.FW1, p.FW2)
	d := &duo{t: t, opts: duoOptions{sealed: sealed}}
	if atOnce {
		d.opts.syncd = instant
	}
	start := func(kind daemonKind, n *lab.Node, number int) *firewall {
		l := newLink(udp4, 0, number)
		var f *firewall
		switch {
		case kind == theirs:
			f = newConntrackd(t, n, conntrackdConfig("ExpectationSync on", l))
		case sealed:
			f = newSyncd(t, n, d.sealedConfig(l)) // they are on by default
		default:
			f = newSyncd(t, n, syncdConfig("[filter]\nexpectations = true\n"+d.opts.syncd, l))
		}
		t.Cleanup(func() {
			if bad := f.Malformed(); f.proc != nil && len(bad) > 0 {
				t.Errorf("the %s on %s found messages of its peer malformed: %v", kind, n.Name(), bad)
			}
		})
		return f
	}
	fw1, fw2 := start(first, p.FW1, 1), start(second, p.FW2, 2)
	fw1.Primary()
	fw2.Backup()

	var clients []*ftpClient
	for _, a := range []lab.Addresses{p.V4, p.V6} {
		service := netip.AddrPortFrom(a.Server, lab.PortService)
		serveFTP(t, p.Server, service)
		for _, own := range []netip.Addr{a.Plain, a.Hidden} {
			for _, active := range []bool{false, true} {
				switch hidden := own == a.Hidden; {
				case hidden && second == theirs:
					continue // its commit leaves class, translation and function of an expectation out
				case hidden && active && first == theirs:
					continue // it does not tell of the adjustment of the control connection
				}
				clients = append(clients, &ftpClient{node: p.Client, own: own, server: service, active: active})
			}
		}
	}
	each := func(what string, do func(c *ftpClient) error) {
		t.Helper()
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				if err := do(c); err != nil {
					t.Errorf("%s, %v: %v", what, c, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	for _, c := range clients {
		defer c.close()
	}
	each("login", func(c *ftpClient) error { return c.open(t.Context()) })
	each("before the takeover", func(c *ftpClient) error { return c.transfer("first-" + c.own.String()) })
	each("agree before the takeover", (*ftpClient).prepare)
	waitFor(t, 10*time.Second, "the backup knows what is expected", func() bool { return fw2.expectations("external") == len(clients) })
	time.Sleep(300 * time.Millisecond) // an adjustment is asked for when its expectation is known

	ok(t, p.TakeOver(p.FW1, p.FW2))
	if !atOnce {
		fw2.Primary()
	}
	each("the transfer that was agreed on before the takeover", func(c *ftpClient) error { return c.fetch("second-" + c.own.String()) })
	if atOnce {
		fw2.Primary()
	}
	each("after the takeover", func(c *ftpClient) error { return c.transfer("third-" + c.own.String()) })
	each("and once more", func(c *ftpClient) error {
		if _, err := c.command("200", "NOOP"); err != nil {
			return err
		}
		return c.transfer("fourth-" + c.own.String())
	})
	if second == ours && !atOnce {
		st := fw2.Status()
		if c := st.LastCommit; c == nil || c.Expects.Entries != uint64(len(clients)) || c.Expects.Created != uint64(len(clients)) {
			t.Errorf("the commit says of expectations: %+v", st.LastCommit)
		}
		if fw2.Stats().Events.Expects == 0 {
			t.Error("the survivor has seen no expectation of its own")
		}
	}
}
