package channel

import (
	"errors"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutCapability runs f on a thread that lacks one capability.
func withoutCapability(t *testing.T, capability int, f func() error) {
	t.Helper()
	onThread(t, func() error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			return err
		}
		data[capability/32].Effective &^= 1 << (capability % 32)
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			return err
		}
		return f()
	})
}

func TestBuffersWithoutCapability(t *testing.T) {
	limit := func(name string) int {
		text, err := os.ReadFile("/proc/sys/net/core/" + name)
		must(t, err)
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
		return n
	}
	withoutCapability(t, unix.CAP_NET_ADMIN, func() error {
		l := loopback(t, 1)
		wantRecv, wantSend := 2*min(defaultBuffer, limit("rmem_max")), 2*min(defaultBuffer, limit("wmem_max"))
		if recv, send := l.Buffers(); recv != wantRecv || send != wantSend {
			t.Errorf("buffers %d and %d, want %d and %d", recv, send, wantRecv, wantSend)
		}
		return nil
	})
}

func TestPrivilegedPort(t *testing.T) {
	withoutCapability(t, unix.CAP_NET_BIND_SERVICE, func() error {
		_, err := Open(Config{Type: UDP, Interface: "lo", Local: addr("127.0.0.1"), Peers: []netip.Addr{addr("127.0.0.2")}, Port: 1})
		if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
			t.Errorf("error %v", err)
		}
		return nil
	})
}
