package commit

import (
	"errors"
	"fmt"

	"syncd/internal/flow"

	"golang.org/x/sys/unix"
)

// labelled counts the entries that were created with labels. The kernel stores them
// only while some rule of it uses labels, and says nothing when it drops them; so
// one of them is looked at afterwards.
type labelled struct {
	n   int
	key flow.Tuple // of the last one
}

// note notes that f was created.
func (l *labelled) note(f *flow.Flow) {
	if f.Has&flow.HasLabels != 0 {
		l.n++
		l.key = f.Orig
	}
}

// checkLabels looks whether the kernel has kept the labels of what was created since
// the last call, and reports the entries if not.
func (r *runner) checkLabels() error {
	l := &r.labelled
	if l.n == 0 {
		return nil
	}
	switch err := r.k.Get(&l.key, &r.have); {
	case errors.Is(err, unix.ENOENT):
		return nil // it has ended already: the next one will show it
	case err != nil:
		return fmt.Errorf("commit: look for %s: %w", describe(&l.key), err)
	}
	if r.have.Has&flow.HasLabels == 0 {
		r.report.remarkAll(&l.key, reasonNoLabels, l.n)
	}
	l.n = 0
	return nil
}

// mergeLabels lets an entry that has no labels learn those of f. Whatever it has was
// set on this machine, or is the same.
func mergeLabels(u, f, have *flow.Flow) {
	if f.Has&flow.HasLabels != 0 && have.Has&flow.HasLabels == 0 {
		u.Has |= flow.HasLabels
		u.Labels = f.Labels
	}
}
