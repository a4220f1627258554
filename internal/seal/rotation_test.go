package seal

import (
	"fmt"
	"testing"
)

// rotation is the procedure of the package documentation: what is loaded, in steps.
func rotation(old, now Key) [][]Key { return [][]Key{{old}, {old, now}, {now, old}, {now}} }

// orders returns every order in which a and b (0 and 1) can take n steps each, with
// step i taken by both before step i+1 by either if together is set.
func orders(n int, together bool) (all [][]int) {
	var walk func(done [2]int, order []int)
	walk = func(done [2]int, order []int) {
		if len(order) == 2*n {
			all = append(all, append([]int{}, order...))
			return
		}
		for who := range 2 {
			if done[who] == n || together && done[who] > done[1-who] {
				continue
			}
			next := done
			next[who]++
			walk(next, append(order, who))
		}
	}
	walk([2]int{}, nil)
	return all
}

// rotate takes a and b through steps in the given order and returns how many
// datagrams were lost, with one in flight in both directions across every reload.
func rotate(t *testing.T, steps [][]Key, order []int) (lost int) {
	t.Helper()
	boxes := [2]*Box{newBox(t, 1, steps[0]...), newBox(t, 2, steps[0]...)}
	peers := [2]*Peer{meet(t, boxes[0], boxes[1]), meet(t, boxes[1], boxes[0])}
	deliver := func(to int, d []byte) {
		_, p, fault := boxes[to].Open(nil, d, t0)
		if fault != FaultNone {
			lost++
		} else if p != peers[to] || !p.Met() {
			t.Fatal("the session did not survive a reload")
		}
	}
	var done [2]int
	for _, who := range order {
		inFlight := [2][]byte{boxes[1].Seal(nil, nil), boxes[0].Seal(nil, nil)}
		done[who]++
		if err := boxes[who].SetKeys(steps[done[who]]); err != nil {
			t.Fatal(err)
		}
		for to := range boxes {
			deliver(to, inFlight[to])
			deliver(to, boxes[1-to].Seal(nil, nil))
		}
	}
	return lost
}

// "With [old], [old, new], [new, old], [new] loaded in this order, and each step on
// all nodes before the next one, every datagram finds its key."
func TestRotationLosesNothing(t *testing.T) {
	steps := rotation(testKey(1), testKey(2))
	all := orders(len(steps)-1, true)
	if len(all) != 8 {
		t.Fatalf("%d orders", len(all))
	}
	for _, order := range all {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			if lost := rotate(t, steps, order); lost != 0 {
				t.Errorf("%d datagrams lost", lost)
			}
		})
	}
}

// The test above can fail: without the barrier between the steps, or without the
// step that makes the new key known, datagrams are lost.
func TestHastyRotationLoses(t *testing.T) {
	steps := rotation(testKey(1), testKey(2))
	lossy := 0
	for _, order := range orders(len(steps)-1, false) {
		if rotate(t, steps, order) != 0 {
			lossy++
		}
	}
	if lossy == 0 {
		t.Error("no order without barriers loses anything")
	}
	for _, order := range orders(2, true) {
		if rotate(t, [][]Key{steps[0], steps[2], steps[3]}, order) == 0 {
			t.Errorf("order %v without the step [old, new] loses nothing", order)
		}
	}
}

func TestRotationSealsWithTheFirst(t *testing.T) {
	old, now := testKey(1), testKey(2)
	a, both, behind := newBox(t, 1, old), newBox(t, 2, old, now), newBox(t, 3, old)
	open(t, both, a.Seal(nil, nil))
	if err := a.SetKeys([]Key{now, old}); err != nil {
		t.Fatal(err)
	}
	d := a.Seal(nil, nil)
	want, _ := straightSeal(now.secret[:], 1, 2, nil)
	if string(d) != string(want) {
		t.Errorf("%x, want %x", d, want)
	}
	open(t, both, d)
	refuse(t, behind, d, FaultKey)
	open(t, a, both.Seal(nil, nil)) // which still seals with the old one
}

// A key that was removed opens nothing, and when it comes back what it opened once
// it does not open again.
func TestRemovedKey(t *testing.T) {
	old, now := testKey(1), testKey(2)
	a, b := newBox(t, 1, old), newBox(t, 2, old)
	p := meet(t, b, a)
	seen, unseen := a.Seal(nil, nil), a.Seal(nil, nil)
	open(t, b, seen)
	if err := b.SetKeys([]Key{now}); err != nil {
		t.Fatal(err)
	}
	refuse(t, b, seen, FaultKey)
	refuse(t, b, unseen, FaultKey)
	if len(p.traffic) != 1 || p.traffic[0] != nil {
		t.Error("the traffic key of a removed key is kept")
	}
	if err := b.SetKeys([]Key{old}); err != nil {
		t.Fatal(err)
	}
	refuse(t, b, seen, FaultReplayed)
	open(t, b, unseen)
}

// A new key may have the id of the one that it replaces.
func TestRotationToTheSameID(t *testing.T) {
	old, now := keysWithOneID(t)
	a, b := newBox(t, 1, old), newBox(t, 2, old)
	meet(t, b, a)
	for _, x := range []*Box{a, b} {
		if err := x.SetKeys([]Key{now}); err != nil {
			t.Fatal(err)
		}
	}
	open(t, b, a.Seal(nil, nil))
}
