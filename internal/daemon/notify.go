package daemon

import (
	"fmt"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"syncd/internal/monotime"
)

// notifier tells systemd how the service is (sd_notify(3)). Without systemd it does
// nothing.
type notifier struct {
	log  *zap.Logger
	last string // the status line that systemd has
}

func newNotifier(log *zap.Logger) *notifier { return &notifier{log: log} }

func (n *notifier) send(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		n.log.Warn("telling systemd failed", zap.Error(err))
	}
}

func (n *notifier) ready(status string) {
	n.last = status
	n.send(sd.SdNotifyReady + "\nSTATUS=" + status)
}

// status sends the status line if it has changed.
func (n *notifier) status(line string) {
	if line != n.last {
		n.last = line
		n.send("STATUS=" + line)
	}
}

func (n *notifier) stopping() { n.send(sd.SdNotifyStopping) }

func (n *notifier) alive() { n.send(sd.SdNotifyWatchdog) }

// reloading must be followed by ready. systemd wants the clock of its own start
// of the reload, in microseconds.
func (n *notifier) reloading() {
	n.send(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, monotime.SystemMicroseconds()))
}

// watchdog returns a channel that ticks when the watchdog wants to be fed, twice as
// often as it asks; nil if there is none.
func (n *notifier) watchdog() <-chan time.Time {
	d, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("reading the watchdog interval failed", zap.Error(err))
	}
	if d <= 0 {
		return nil
	}
	return time.NewTicker(d / 2).C
}
