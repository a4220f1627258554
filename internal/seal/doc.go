// Package seal keeps what travels on the sync links secret and genuine: sealed
// datagrams, their keys, the sessions of peers and the replay window.
//
// What it owns: the format of a sealed datagram and of a key file, the cryptography
// (all of it from the standard library), and the memory of which sessions are met.
// What must not enter: sockets, goroutines, clocks, loggers, and the messages
// inside a datagram. The time comes in as an argument; randomness comes from
// crypto/rand.
//
// # Datagram
//
// All numbers are big-endian. The header is in clear and is authenticated as
// additional data.
//
//	octets  0-3   magic "SYNC"
//	        4     version, 1
//	        5     suite, 1: HKDF-SHA256 and AES-256-GCM
//	        6-7   key id: the first two octets of SHA-256("syncd key id v1" || key)
//	        8-15  session id of the sender: random, one for each process
//	        16-23 counter: 1 for the first datagram of the session, then one more for each
//	        24-   ciphertext, then the tag of 16 octets
//
// The traffic key of a key and a session is HKDF-SHA256 (RFC 5869) of the key with
// the session id as salt and "syncd seal v1" || suite as info, 32 octets. The nonce
// is four zero octets and the counter. One counter serves all keys of a session
// and only grows, and no two sessions share a traffic key: so a nonce never repeats
// under a traffic key, which is what AES-GCM (NIST SP 800-38D, section 8) asks for.
//
// # Sessions
//
// That a datagram is authentic does not say when it was sealed. A session is
// therefore not believed before it is met:
//
//	           authentic datagram              Peer.Answer with the challenge
//	unknown ────────────────────► greeting ────────────────────────────────► met
//	   ▲                             │                                        │
//	   └── forgotten: makes room ────┴──────── forgotten: Drop, makes room ───┘
//
// In state greeting the caller may use a datagram for one thing only: to exchange
// challenges. It sends Peer.Challenge in a sealed datagram of its own, and the peer
// echoes it in a datagram of the session in question. Whoever recorded the session
// of a process that has ended cannot make it echo a fresh challenge, so the session
// stays in greeting until it is forgotten. What the recorder kept of a process that
// still runs is older than the echo, and Answer refuses all counters up to there.
//
// In a met session each counter is accepted once. It may be late by less than 8192
// (the scheme of RFC 6479).
//
// # Rotation of keys
//
// The first key seals, all of them open. With [old], [old, new], [new, old], [new]
// loaded in this order, and each step on all nodes before the next one, every
// datagram finds its key. Sessions, counters and windows stay as they are.
//
// # Limits
//
// Only the authentic datagram of a session that is not known makes an entry.
// 64 sessions in state greeting and 256 met ones are kept; of too many, the one
// that was silent for longest is forgotten. To check a datagram of an unknown
// session costs the derivation of a key, some microseconds: 200 of these are done
// in a second (64 in a burst), and what is beyond is dropped unseen as FaultFlood.
// Known sessions do not notice.
//
// A session seals 2^64-1 datagrams; Seal then seals no more. At a million datagrams
// a second this takes 584,000 years. A process has one session for its whole life:
// there is no rekeying but a restart. Two processes have the same session id by
// chance with a probability of 2^-64; a machine that goes on from a snapshot of
// its memory has its own, with counters that were used, and must be restarted.
//
// # Ownership
//
// A Box has two halves. Seal and Sealed may run in one goroutine while one other at
// a time calls Open, Drop and the methods of Peer, and reads the counters there.
// SetKeys needs both halves for itself. Buffers belong to the caller, and none is
// kept.
package seal
