package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"go.uber.org/zap"

	"syncd/internal/config"
	"syncd/internal/ctnetlink"
)

// checkHost refuses to start where nothing could be replicated, and logs what
// weakens it.
func (d *Daemon) checkHost() error {
	for _, f := range ctnetlink.CheckHost() {
		switch f.Severity {
		case ctnetlink.Error:
			return fmt.Errorf("%s is %s and must be %s: %s", f.Name, f.Value, f.Want, f.Why)
		case ctnetlink.Warning:
			d.log.Warn(f.Name+" should be "+f.Want, zap.String("value", f.Value), zap.String("why", f.Why))
		}
	}
	return nil
}

// hostWarnings are the plain sentences of status about the host's settings.
func hostWarnings() (w []string) {
	for _, f := range ctnetlink.CheckHost() {
		if f.Severity != ctnetlink.Info {
			w = append(w, fmt.Sprintf("%s is %s, should be %s: %s", f.Name, f.Value, f.Want, f.Why))
		}
	}
	return w
}

// ErrCheck is returned by Check when something must be mended.
var ErrCheck = errors.New("the check found errors")

// Check reads a configuration and looks at the host, and writes what it finds to w,
// as text or as JSON. It returns ErrCheck, or the error of the configuration, when
// the daemon would not start.
func Check(path string, w io.Writer, asJSON bool) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	findings := ctnetlink.CheckHost()
	bad := false
	for _, f := range findings {
		bad = bad || f.Severity == ctnetlink.Error
	}
	if asJSON {
		type finding struct {
			Name     string `json:"name"`
			Value    string `json:"value"`
			Want     string `json:"want"`
			Why      string `json:"why"`
			Severity string `json:"severity"`
		}
		out := struct {
			Config string    `json:"config"`
			Links  int       `json:"links"`
			Host   []finding `json:"host"`
			OK     bool      `json:"ok"`
		}{path, len(cfg.Links), []finding{}, !bad}
		for _, f := range findings {
			out.Host = append(out.Host, finding{f.Name, f.Value, f.Want, f.Why, f.Severity.String()})
		}
		if err := json.NewEncoder(w).Encode(out); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(w, "%s: good (%d links)\n", path, len(cfg.Links))
		for _, f := range findings {
			mark := "ok"
			switch {
			case f.Severity != ctnetlink.Info:
				mark = f.Severity.String()
			case f.Value != f.Want:
				mark = "note"
			}
			fmt.Fprintf(w, "%-7s %s = %s", mark, f.Name, f.Value)
			if f.Value != f.Want {
				fmt.Fprintf(w, " (better: %s)", f.Want)
			}
			fmt.Fprintf(w, "\n        %s\n", f.Why)
		}
	}
	if bad {
		return ErrCheck
	}
	return nil
}
