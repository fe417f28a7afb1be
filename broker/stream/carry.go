package stream

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound one stream. Every field has to be set.
type Limits struct {
	Bytes    int64         // that it may carry, in both directions together
	Time     time.Duration // that it may be open
	Recorder time.Duration // that a frame may take to become durable
	Silence  time.Duration // that a side may give no sign of life, or take nothing
}

// Carrier carries one stream.
type Carrier struct {
	Journal Journal
	Window  *Window
	Limits  Limits
	// Account is asked before that many bytes go to the agent; an error cuts the
	// stream. Nil asks nobody.
	Account func(bytes int) error
	// Farewell says in the form of the error channel (a metav1.Status in JSON) why
	// the stream is cut.
	Farewell func(cause error) []byte

	carried atomic.Int64
}

// Outcome is what became of a stream.
type Outcome struct {
	// Cause is why it was cut: one of the errors of this package, the cause of the
	// context, or what Account said; nil if one of the sides ended it.
	Cause error
	// AgentLeft says that the agent went before the end.
	AgentLeft bool
	// ExitCode is that of the command, nil if it is not known.
	ExitCode *int
	// FromAgent and FromPod are the bytes that were passed on.
	FromAgent, FromPod int64
}

// How a stream ends by itself; causes of its context.
var (
	errAgentLeft = errors.New("the agent has left")
	errPodEnded  = errors.New("the pod's side has ended")
)

// How long the goodbye may take: of a stream that is cut, and of one that has
// ended, where the agent may have to read what is on its way.
const (
	cutTime    = 900 * time.Millisecond
	endingTime = 3 * time.Second
)

func (c *Carrier) spend(bytes int) error {
	if c.carried.Add(int64(bytes)) > c.Limits.Bytes {
		return ErrBytes
	}
	return nil
}

func (c *Carrier) account(bytes int) error {
	if c.Account == nil {
		return nil
	}
	return c.Account(bytes)
}

// Carry moves everything between the two until one side ends or ctx does; its
// cause then is why. Both are closed when it returns, and nothing of it runs any
// more. ctx must not end with the context of the agent's request: net/http ends
// that when the first read from the agent fails, and nothing would tell who left.
func (c *Carrier) Carry(ctx context.Context, agent *Agent, pod *Pod) Outcome {
	agent.link().silence, pod.link().silence = c.Limits.Silence, c.Limits.Silence
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	up, down := newPipe(c, agent.side, pod.side, true), newPipe(c, pod.side, agent.side, false)
	var agentReader, others sync.WaitGroup
	run := func(group *sync.WaitGroup, do func(context.Context) error, end error) {
		group.Go(func() {
			err := do(ctx)
			switch {
			case errors.Is(err, io.EOF): // writing to a side that is gone
				err = end
			case errors.Is(err, errClosing):
				err = nil
			}
			if err != nil {
				cancel(err)
			}
		})
	}
	run(&agentReader, up.readAll, nil)
	run(&others, down.readAll, nil)
	run(&others, drained(up.writeAll, errAgentLeft), nil)
	run(&others, drained(down.writeAll, errPodEnded), errAgentLeft)
	run(&others, c.pinging(agent.side), nil)
	run(&others, c.pinging(pod.side), nil)
	over := time.AfterFunc(c.Limits.Time, func() { cancel(ErrTime) })
	defer over.Stop()
	<-ctx.Done()

	cause := context.Cause(ctx)
	if errors.Is(cause, errPodEnded) && !agent.portForward && !down.status.heard() {
		cause = ErrBroken
	}
	patience := cutTime
	if errors.Is(cause, errPodEnded) {
		patience = endingTime
	}
	agent.link().endBy(time.Now().Add(patience))
	closePod(pod, cause)
	others.Wait()
	c.takeLeave(context.WithoutCancel(ctx), agent, cause, down.status.heard())
	agent.link().closeWrite()
	agentReader.Wait()
	agent.link().drain()
	up.empty()
	down.empty()
	return outcome(cause, up, down, agent.portForward)
}

// drained is do, and then the end of the stream: there is nothing more to pass on.
func drained(do func(context.Context) error, end error) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := do(ctx); err != nil {
			return err
		}
		return end
	}
}

// pinging asks a side for signs of life. A ping can take as long as any write.
func (c *Carrier) pinging(of side) func(context.Context) error {
	return func(ctx context.Context) error {
		ticker := time.NewTicker(c.Limits.Silence / 4)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				of.ping()
			}
		}
	}
}

// closePod lets the pod's side go, politely if the agent just left.
func closePod(pod *Pod, cause error) {
	if errors.Is(cause, errAgentLeft) {
		pod.link().endBy(time.Now().Add(cutTime))
		_ = pod.finish(nil) // it is closed in any case
	}
	pod.link().Close()
}

// takeLeave says why the stream is cut, and ends it. Nobody else writes to the
// agent any more. What it says is put on record first; if just that is what cannot
// be done it is said all the same: it is the broker's word, and nothing of the
// pod's.
func (c *Carrier) takeLeave(ctx context.Context, agent *Agent, cause error, heard bool) {
	var last []byte
	if !errors.Is(cause, errPodEnded) && !errors.Is(cause, errAgentLeft) && !heard && c.Farewell != nil {
		last = c.Farewell(cause)
	}
	if last != nil && !errors.Is(cause, ErrRecorder) {
		ctx, cancel := context.WithTimeout(ctx, cutTime/3)
		defer cancel()
		receipt, err := c.Journal.Append(ctx, &Frame{Time: c.now(), Channel: Error, Data: last})
		if err == nil {
			_ = receipt.Wait(ctx) // see above
		}
	}
	_ = agent.finish(last) // an agent that is gone need not be told
}

func outcome(cause error, up, down *pipe, portForward bool) Outcome {
	o := Outcome{FromAgent: up.bytes, FromPod: down.bytes}
	if code, known := down.status.exitCode(); known {
		o.ExitCode = &code
	}
	switch {
	case errors.Is(cause, errAgentLeft):
		// Clients leave a port-forward when they are done with it, and an exec when
		// they know how it ended.
		o.AgentLeft = !portForward && !down.status.heard()
	case !errors.Is(cause, errPodEnded):
		o.Cause = cause
	}
	return o
}
