package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// defaultFolder, in the repository, is what make dev and make down mean.
const defaultFolder = ".testbed"

// leaveRunning starts a testbed that lives on, or finds the one that does, and
// says what to try there.
func (o *options) leaveRunning(ctx context.Context, output io.Writer) error {
	if o.bed.Directory == "" {
		repository, err := testbed.FindRepository()
		if err != nil {
			return fmt.Errorf("%w, or say --dir", err)
		}
		o.bed.Directory = filepath.Join(repository, defaultFolder)
	}
	bed, found, err := o.findOrStart(ctx)
	if err != nil {
		return err
	}
	c, err := newCast(bed)
	if err == nil {
		acts := slices.Concat(setScene(bed.Options().Node), giveTask())
		err = silently(ctx, posixShell{c}, values(bed), acts)
	}
	switch {
	case err == nil:
		return advise(output, c, bed.Directory())
	case found:
		return fmt.Errorf("setting up the example: %w", err)
	}
	return o.end(ctx, bed, fmt.Errorf("setting up the example: %w", err))
}

// findOrStart answers a testbed, and whether it ran before.
func (o *options) findOrStart(ctx context.Context) (bed *testbed.Testbed, found bool, err error) {
	bed, err = testbed.Open(o.bed.Directory)
	switch {
	case errors.Is(err, testbed.ErrNoTestbed), err == nil && !anyRuns(bed):
		o.bed.Detached = true
		bed, err = o.start(ctx)
		return bed, false, err
	case err != nil:
		return nil, false, fmt.Errorf("looking for what runs in %s: %w (make down clears it away)", o.bed.Directory, err)
	}
	for _, component := range bed.Components() {
		if component.PID() == 0 || !bed.Complete() {
			return nil, false, fmt.Errorf("what runs in %s is not complete (%s): make down clears it away", o.bed.Directory, component.Name())
		}
	}
	o.progress("it is up already, in %s", bed.Directory())
	return bed, true, nil
}

func anyRuns(bed *testbed.Testbed) bool {
	return slices.ContainsFunc(bed.Components(), func(c testbed.Component) bool { return c.PID() != 0 })
}

// part is what somebody can try in a terminal of their own.
type part struct {
	who    role
	about  string
	trials []trial
}

type trial struct{ types, about string }

func parts() []part {
	return []part{
		{alpha, "the agent with a task", []trial{
			{"kubectl -n shop get pods", "inside its task"},
			{"kubectl -n shop delete pod web-0", "outside it: refused, and told why"},
			{"kubectl -n shop auth can-i --list", "what it may do"},
		}},
		{operator, "who gives and ends tasks", []trial{
			{"taskgate grants", "who may do what now"},
			{`kubectl patch taskgrant inc-4711 --type=merge -p '{"spec":{"revoked":true}}'`, "ends the task: try as alpha again"},
			{"kubectl delete taskgrant inc-4711; kubectl apply -f grant.yaml", "gives it anew"},
		}},
		{auditor, "who can read the bucket and nothing else", []trial{
			{"taskgate records", "what the agents did"},
			{"taskgate verify", "proof that the record is whole"},
		}},
	}
}

// advise says what to try and how to stop it.
func advise(output io.Writer, c *cast, directory string) error {
	text := "\ntaskgate runs, and the agent alpha has a task. Try it, each part in a terminal of its own:\n"
	for _, part := range parts() {
		text += fmt.Sprintf("\n  # %s, %s\n  . %s\n", part.who, part.about, quote(c.profile(part.who)))
		for _, t := range part.trials {
			text += fmt.Sprintf("  %-42s  # %s\n", t.types, t.about)
		}
	}
	stop := "make down"
	if filepath.Base(directory) != defaultFolder {
		stop += " DIR=" + quote(directory)
	}
	text += fmt.Sprintf("\nThe policy and the grant are in %s, all logs in %s.\nStop it with: %s\n", c.folder, filepath.Join(directory, "log"), stop)
	if _, err := io.WriteString(output, text); err != nil {
		return fmt.Errorf("saying what to try: %w", err)
	}
	return nil
}
