package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Listen opens a TCP listener inside the namespace; it may be used from anywhere.
func (n *Node) Listen(at netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false) // its subflows would be flows of their own
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = lc.Listen(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", n.name, err)
	}
	return l, nil
}

// ListenUDP opens a UDP socket inside the namespace; it may be used from anywhere.
func (n *Node) ListenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	var c *net.UDPConn
	err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", n.name, err)
	}
	return c, nil
}

// Dial opens a connection ("tcp" or "udp") from inside the namespace; it may be
// used from anywhere. A zero local address leaves the choice to the kernel.
func (n *Node) Dial(ctx context.Context, network string, local netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	if local.IsValid() {
		at := netip.AddrPortFrom(local, 0)
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(at)
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(at)
		}
	}
	var c net.Conn
	// Literal addresses: the dialer makes the socket on this very goroutine.
	err := n.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, remote.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", n.name, err)
	}
	return c, nil
}
