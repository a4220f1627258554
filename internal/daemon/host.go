package daemon

import (
	"fmt"

	"go.uber.org/zap"

	"syncd/internal/host"
)

// checkHost refuses to start where nothing could be replicated, and logs what
// weakens it.
func (d *Daemon) checkHost() error {
	for _, f := range host.Essentials() {
		switch f.Verdict {
		case host.Error:
			return fmt.Errorf("%s is %s and must be %s: %s", settingName(f), f.Found, f.Want, f.Why)
		case host.Warning, host.Unknown:
			d.log.Warn(settingName(f)+" should be "+f.Want, zap.String("value", f.Found), zap.String("why", f.Why))
		}
	}
	return nil
}

// hostWarnings are the plain sentences of status about the host's settings.
func hostWarnings() (w []string) {
	for _, f := range host.Essentials() {
		if f.Verdict > host.Note {
			w = append(w, fmt.Sprintf("%s is %s, should be %s: %s", settingName(f), f.Found, f.Want, f.Why))
		}
	}
	return w
}

// settingName returns what an operator would look for.
func settingName(f host.Finding) string {
	switch f.ID {
	case "kernel.cap_net_admin":
		return "CAP_NET_ADMIN"
	case "sysctl.nf_conntrack_events":
		return "net.netfilter.nf_conntrack_events"
	}
	return f.ID
}
