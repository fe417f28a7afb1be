// Package notify tells others that people are asked for something, or have said
// something: a chat, a pager, an event bus.
//
// # Who calls it
//
// The broker, when it has made an Approval, when a TaskGrant waits for people,
// and when one of the two is settled. Only the replica that wrote the change
// tells of it, so each event goes out once, unless that replica ends meanwhile.
//
// # What it promises
//
//   - A message is thin: names, a summary and times, and no diff, body or value.
//     Whoever wants to know more looks at the object, with rights of its own.
//   - It is a CloudEvent 1.0 in structured JSON, signed as Standard Webhooks say
//     (webhook-id, webhook-timestamp, webhook-signature). The id of an event stays
//     the same over all attempts, so that a receiver can drop repetitions.
//   - Nothing that is answered decides anything: the body of an answer is not
//     read, redirects are not followed, and there is no way back in.
//
// # Which way it fails
//
// Behind the work: Send never waits. An event that a receiver does not take is
// sent again with growing pauses for about eight minutes and then dropped, with a
// log line; a full queue drops the newest. Nobody is approved or refused because
// a message was lost: `taskgate pending` shows what is true.
package notify
