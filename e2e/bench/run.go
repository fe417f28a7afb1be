package bench

import (
	"context"
	"fmt"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// watchRepeats is how often the memory of idle watches is measured.
const watchRepeats = 3

// Run measures. A part that fails does not end the run: the report names it, and
// its gates fail. The error is about what no report could be made of.
func Run(ctx context.Context, options Options) (*Report, error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	r := newReport(ctx, options)
	say := func(format string, arguments ...any) {
		_, _ = fmt.Fprintf(options.Progress, format+"\n", arguments...) // progress that nobody sees is no failure
	}
	r.measureMicro(ctx, options, say)
	if options.wantsAny(PartWatches, PartBigList, PartGet, PartList, PartCreate, PartRecording, PartGrants) {
		w, err := startWorld(ctx, worldOptions{spiffe: options.SPIFFE, progress: say, unrecorded: options.wants(PartRecording)})
		if err != nil {
			return nil, err
		}
		r.measureWorld(ctx, w, options, say)
		if err := w.stop(context.WithoutCancel(ctx)); err != nil {
			r.problem("stopping", err)
		}
	}
	if options.wants(PartExec) {
		r.measureExec(ctx, options, say)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.judge(options)
	return r, nil
}

func (r *Report) measureMicro(ctx context.Context, options Options, say func(string, ...any)) {
	var err error
	if options.wants(PartDecision) {
		say("measuring decisions")
		if r.Decisions, r.DecisionRatio, err = measureDecision(ctx, options.MicroRepeats); err != nil {
			r.problem(PartDecision, err)
		}
	}
	if options.wants(PartSpool) {
		say("measuring the spool")
		if r.Spool, err = measureSpool(ctx, max(2, options.MicroRepeats/2)); err != nil {
			r.problem(PartSpool, err)
		}
		if r.SyncMicroseconds, err = syncTime(); err != nil {
			r.problem(PartSpool, err)
		}
	}
}

// measureExec has a world of its own: it needs a node.
func (r *Report) measureExec(ctx context.Context, options Options, say func(string, ...any)) {
	w, err := startWorld(ctx, worldOptions{spiffe: options.SPIFFE, progress: say, node: testbed.Kwok})
	if err != nil {
		r.problem(PartExec, err)
		return
	}
	say("measuring a command that prints %d MB", options.ExecBytes>>20)
	if r.Execs, err = w.measureExec(ctx, options.ExecBytes); err != nil {
		r.problem(PartExec, err)
	}
	if err := w.stop(context.WithoutCancel(ctx)); err != nil {
		r.problem("stopping", err)
	}
}

func (r *Report) measureWorld(ctx context.Context, w *world, options Options, say func(string, ...any)) {
	var err error
	if options.wants(PartWatches) {
		say("measuring %d idle watches", options.Watches)
		if r.Watches, err = w.measureWatches(ctx, options.Watches, min(watchRepeats, options.Rounds-1)); err != nil {
			r.problem(PartWatches, err)
		}
	}
	if options.wants(PartBigList) {
		say("measuring a list of %d MB", options.BigListBytes>>20)
		if r.BigLists, err = w.measureBigList(ctx, options.BigListBytes); err != nil {
			r.problem(PartBigList, err)
		}
		if err := w.restart(ctx); err != nil {
			r.problem(PartBigList, err)
		}
	}
	for _, b := range blocks() {
		if !options.wants(b.part) || ctx.Err() != nil {
			continue
		}
		contenders := []*contender{w.direct, w.plain, w.taskgate}
		if b.part == PartRecording {
			if w.unrecorded == nil {
				r.problem(PartRecording, w.unrecordedProblem)
				continue
			}
			contenders = []*contender{w.taskgate, w.unrecorded}
		}
		say("measuring %s: %d rounds", b.title, options.Rounds)
		rounds, err := w.measure(ctx, b, contenders, options)
		if err != nil {
			r.problem(b.part, err)
			continue
		}
		r.Blocks = append(r.Blocks, newBlockResult(b, contenders, rounds))
	}
	if options.wants(PartGrants) && ctx.Err() == nil {
		say("measuring a broker's start before %d grants", options.Grants)
		if r.ManyGrants, err = w.measureGrants(ctx, options.Grants); err != nil {
			r.problem(PartGrants, err)
		}
	}
}

// blocks are the calls, in the order they are measured.
func blocks() []block {
	var all []block
	add := func(part, what string, made call, clients ...int) {
		for _, n := range clients {
			title := fmt.Sprintf("%s, %d clients", what, n)
			if n == 1 {
				title = what + ", 1 client"
			}
			all = append(all, block{part: part, title: title, call: made, clients: n})
		}
	}
	add(PartGet, "GET pod of 2 KB", getPod(), 1, 16, 64)
	add(PartList, "LIST 500 pods, 1 MB", listPods(), 1, 4)
	add(PartCreate, "CREATE config map", createConfigMap(), 1, 8)
	add(PartRecording, "GET pod of 2 KB, with and without recording", getPod(), 64)
	return all
}
