package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"syncd/internal/ctl"
)

// keptAlive returns a function that reads the counters of a syncd over one
// connection.
func keptAlive(socket string) func(context.Context) (*ctl.Stats, error) {
	c := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	return func(ctx context.Context) (*ctl.Stats, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://syncd/v1/stats", nil)
		if err != nil {
			return nil, err
		}
		resp, err := c.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("GET /v1/stats: %s", resp.Status)
		}
		s := new(ctl.Stats)
		if err := json.NewDecoder(resp.Body).Decode(s); err != nil {
			return nil, err
		}
		_, err = io.Copy(io.Discard, resp.Body) // or the connection is not used again
		return s, err
	}
}
