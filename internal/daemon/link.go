package daemon

import (
	"context"
	"net/netip"

	"go.uber.org/zap"

	"syncd/internal/channel"
	"syncd/internal/config"
	"syncd/internal/filter"
	"syncd/internal/monotime"
	"syncd/internal/netwatch"
)

// linkConfig returns the configuration of a link in the channel's words.
func linkConfig(l *config.Link) channel.Config {
	c := channel.Config{
		Type: channel.UDP, Interface: l.Interface, Local: l.Local, Peers: l.Peers,
		Group: l.Group, Port: l.Port, RecvBuffer: l.RecvBuffer, SendBuffer: l.SendBuffer, TTL: int(l.TTL),
	}
	if l.Type == config.LinkMulticast {
		c.Type = channel.Multicast
	}
	return c
}

// compileFilter returns the filter of a configuration on a host with these
// addresses.
func compileFilter(cfg *config.Config, addrs []netip.Prefix) *filter.Filter {
	f := filter.Compile(filter.Rules{
		Protocols: filter.List[uint8](cfg.Filter.Protocols),
		Addresses: filter.List[netip.Prefix](cfg.Filter.Addresses),
		TCPStates: filter.List[uint8](cfg.Filter.TCPStates),
		Expects:   filter.Expects(cfg.Filter.Expectations),
	})
	if cfg.Filter.Local {
		return f
	}
	local := make([]netip.Addr, 0, len(addrs))
	for _, p := range addrs {
		local = append(local, p.Addr())
	}
	return f.WithLocal(local)
}

const (
	readBatch  = 64   // datagrams of one read
	readLength = 9216 // octets of the longest datagram taken: a jumbo frame; conntrackd fills an MTU at most
)

// linkReader is a link as the engine reads it.
type linkReader struct {
	link  *channel.Link
	batch *channel.Batch
}

func newLinkReader(l *channel.Link) *linkReader {
	return &linkReader{l, channel.NewBatch(readBatch, max(readLength, l.MaxPayload()+1))}
}

func (r *linkReader) Read() (int, error) {
	err := r.link.Receive(r.batch)
	return r.batch.N, err
}

func (r *linkReader) Datagram(i int) ([]byte, netip.Addr) {
	return r.batch.Datagram(i), r.batch.From(i).Addr()
}

func (r *linkReader) Close() error { return r.link.Close() }

// sender is the daemon's channel as the engine sends to it. Its methods run on the
// loop.
type sender Daemon

func (s *sender) Send(datagrams [][]byte) {
	s.procs.turn(monotime.Now())
	// Errors are counted by the link, by kind; what was not sent is repaired.
	_, _ = s.channel.Send(datagrams)
}

func (s *sender) MaxPayload() int { return s.channel.MaxPayload() }

func (s *sender) Heard(link int) {
	if sw, ok := s.channel.Heard(monotime.Now(), link); ok {
		(*Daemon)(s).switched(sw)
	}
}

func (d *Daemon) switched(sw channel.Switch) {
	d.log.Warn("sending on another link", zap.String("from", d.links[sw.From].Name()),
		zap.String("to", d.links[sw.To].Name()), zap.Stringer("because", sw.Reason))
}

// watchInterfaces keeps the links and the filter in step with the interfaces and
// addresses of the host. It closes known when they are for the first time; until
// then the loop does not run, and what belongs to it is ours.
func (d *Daemon) watchInterfaces(ctx context.Context, known chan<- struct{}) error {
	first := true
	return netwatch.Watch(ctx, func(s netwatch.Snapshot) {
		for _, l := range d.links {
			d.followInterface(l, s.Links)
		}
		d.mu.Lock()
		d.addrs = s
		f := compileFilter(d.cfg, s.Addrs)
		d.mu.Unlock()
		apply := func() {
			d.engine.SetFilter(f)
			d.engine.SetHost(s.InUse)
			if sw, ok := d.channel.Update(monotime.Now()); ok {
				d.switched(sw)
			}
		}
		if first {
			first = false
			apply()
			close(known)
			return
		}
		d.engine.Do(ctx, apply)
	})
}

// followInterface tells a link the state of its interface, and opens it anew when
// the interface was replaced.
func (d *Daemon) followInterface(l *channel.Link, states map[string]netwatch.LinkState) {
	st, ok := states[l.Interface()]
	was := l.Up()
	if ok && st.Index != l.Index() {
		if err := l.Reopen(); err != nil {
			// Its address may follow in a moment; the change wakes us again.
			d.log.Info("link not open yet", zap.String("link", l.Name()), zap.Error(err))
			return
		}
		d.log.Info("link open again", zap.String("link", l.Name()))
	}
	l.SetUp(ok && st.Up && st.Running, st.MTU)
	if up := l.Up(); up != was {
		d.log.Info("link state", zap.String("link", l.Name()), zap.Bool("up", up))
	}
}
