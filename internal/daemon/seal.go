package daemon

import (
	"fmt"
	"sync"

	"syncd/internal/config"
	"syncd/internal/monotime"
	"syncd/internal/seal"
)

// readKeys reads the key files of a configuration.
func readKeys(cfg *config.Config) ([]seal.Key, error) {
	keys := make([]seal.Key, 0, len(cfg.Sync.Keys))
	for _, path := range cfg.Sync.Keys {
		k, err := seal.ReadKeyFile(path)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		// The configuration has asked for this in so many words (insecure = true):
		// the format is the same, but the key is everybody's.
		k, err := seal.ParseKey([]byte(openKey))
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// openKey is the key of nodes that have none.
const openKey = "syncd-key-1 c3luY2Qgd2l0aG91dCBhIGtleTogbm90IHNlY3VyZSE=\n"

// box is a seal.Box as the engine uses it: sealing by the loop, opening by all link
// readers.
type box struct {
	box *seal.Box

	sealing sync.Mutex // held by Seal, and by SetKeys
	opening sync.Mutex // guards the opening half of the box
}

func newBox(keys []seal.Key) (*box, error) {
	session := seal.NewSession()
	for session == 0 {
		session = seal.NewSession()
	}
	b, err := seal.New(session, keys)
	if err != nil {
		return nil, err
	}
	return &box{box: b}, nil
}

// Seal implements engine.Sealer.
func (b *box) Seal(dst, plain []byte) []byte {
	b.sealing.Lock()
	defer b.sealing.Unlock()
	return b.box.Seal(dst, plain)
}

// Open implements engine.Sealer. Whether the session is met is the mode's to say: of
// one that is not it looks at greetings only.
func (b *box) Open(dst, datagram []byte, now monotime.Time) ([]byte, uint64, bool) {
	b.opening.Lock()
	defer b.opening.Unlock()
	plain, peer, fault := b.box.Open(dst, datagram, now)
	if fault != seal.FaultNone {
		return dst, 0, false
	}
	return plain, peer.Session(), true
}

// Overhead implements engine.Sealer.
func (b *box) Overhead() int { return seal.Overhead }

// meet notes that a session has proven that it lives: what was recorded of it before
// is refused from now on.
func (b *box) meet(session uint64) {
	b.opening.Lock()
	defer b.opening.Unlock()
	if p := b.box.Peer(session); p != nil {
		now := monotime.Now()
		p.Answer(now, p.Challenge(now))
	}
}

func (b *box) drop(session uint64) {
	b.opening.Lock()
	defer b.opening.Unlock()
	b.box.Drop(session)
}

// setKeys replaces the keys, without losing a datagram.
func (b *box) setKeys(keys []seal.Key) error {
	b.sealing.Lock()
	defer b.sealing.Unlock()
	b.opening.Lock()
	defer b.opening.Unlock()
	return b.box.SetKeys(keys)
}

// stats returns what was dropped, by reason.
func (b *box) stats() map[string]uint64 {
	b.opening.Lock()
	defer b.opening.Unlock()
	refused := map[string]uint64{}
	for f := seal.FaultShort; f < seal.NumFaults; f++ {
		refused[f.String()] = b.box.Stats.Faults[f]
	}
	return refused
}

// openBox makes the box of the syncd dialect; conntrackd's has none.
func (d *Daemon) openBox(cfg *config.Config) error {
	if cfg.Sync.Wire != config.WireSyncd {
		return nil
	}
	keys, err := readKeys(cfg)
	if err != nil {
		return err
	}
	if d.box, err = newBox(keys); err != nil {
		return fmt.Errorf("sync.keys: %w", err)
	}
	return nil
}
