// Package stream carries one exec, attach or port-forward between an agent and a
// pod, and releases nothing before it is on record.
//
// The broker calls [Transport] to open the way to the pod, [Accept] to answer the
// agent, and [Carry] to move what both say. Both ends terminate here: frames are
// read by the libraries Kubernetes' own clients use (gorilla/websocket, the framer
// of moby/spdystream), become typed events, and are written anew. So nothing is
// forwarded that was not understood, and what is recorded is what was carried.
//
// # What it promises
//
//   - A piece of data, the end of a channel, or the opening of a connection is
//     written to the other side only after its frame is durable ([Receipt]).
//     Reading goes on meanwhile, up to a bound, so that the disk is waited for once
//     per batch and not once per piece. The order of each direction is kept.
//
//   - A channel that ends (stdin at its end) ends on the other side too, and the
//     record says so. The error channel goes through as it is, so exit codes are
//     the container's.
//
//   - Of changes of the terminal's size the newest counts; at most 20 a second are
//     recorded and passed on.
//
//   - A stream that is cut says why where the user reads it, as the Status on the
//     error channel, and is closed on both sides within a second.
//
//   - Memory is small and flat: a direction holds one buffer of 32 KiB of its own,
//     and more only while the shared [Window] has some to lend.
//
// # Which way it fails
//
// Closed: frames that cannot be parsed, that are larger than any client sends, or
// that belong to a channel nobody asked for end the stream (ErrProtocol). A record
// that cannot be kept in time ends it (ErrRecorder). So do a peer that does not
// answer pings, and one that takes nothing, for the time of Limits.Silence
// (ErrSilent): a command that reads none of a long input for that long counts
// as one.
package stream
