package demo

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// step is a part of the play.
type step struct {
	title string
	acts  []act
}

// act is a command, and what has to come of it.
type act struct {
	why   string // said before the command, if anything
	who   role
	types string // command line; {name} stands for a value that an act before kept

	// meanwhile is done while the command, which watches something, still runs,
	// and should end it. The act's own wants are about how it ends.
	meanwhile *act

	wants    []want
	holds    string        // said when all wants hold; {took} is how long the end took
	patience time.Duration // the command is repeated this long, until all wants hold
	keeps    []keep
	shows    func(lines []string) []string // trims the output; nil: shows all
}

// keep gives names to parts of an output.
type keep struct {
	pattern *regexp.Regexp // one group for each name
	names   []string
}

// player plays steps, and checks them.
type player struct {
	shell  shell
	screen *screen
	kept   map[string]string
}

func newPlayer(s shell, out *screen, values map[string]string) *player {
	return &player{shell: s, screen: out, kept: maps.Clone(values)}
}

// play plays steps until one does not hold.
func (p *player) play(ctx context.Context, steps []step) error {
	for i, s := range steps {
		p.screen.title(fmt.Sprintf("%d. %s", i+1, s.title))
		for _, a := range s.acts {
			if err := p.act(ctx, a); err != nil {
				return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
			}
		}
	}
	return nil
}

// act does an act: says why, types, shows what came, checks it.
func (p *player) act(ctx context.Context, a act) error {
	p.screen.say(a.why)
	line := p.fill(a.types)
	p.screen.command(a.who, line)
	r, err := p.outcome(ctx, a, line)
	if err != nil {
		return err
	}
	p.screen.output(r.output, a.shows)
	if expected := missing(a.wants, r, p.fill); len(expected) > 0 {
		f := &failure{claim: cmp.Or(p.claim(a, r), "the command does what it should"), expected: expected, came: r, trimmed: a.shows != nil}
		p.screen.failed(f)
		return f
	}
	p.screen.holds(p.claim(a, r))
	return p.keep(a.keeps, r.output)
}

// outcome runs the command of an act, again and again if it has patience.
func (p *player) outcome(ctx context.Context, a act, line string) (result, error) {
	if a.meanwhile != nil {
		return p.shell.watch(ctx, a.who, line, func(before string) error {
			p.screen.output(before, nil)
			err := p.act(ctx, *a.meanwhile)
			p.screen.goesOn(a.who)
			return err
		})
	}
	const pause = 300 * time.Millisecond
	for deadline := time.Now().Add(a.patience); ; {
		r, err := p.shell.run(ctx, a.who, line)
		if err != nil || len(missing(a.wants, r, p.fill)) == 0 || !time.Now().Before(deadline) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return result{}, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// claim is what the act shows when it holds.
func (p *player) claim(a act, r result) string {
	return strings.ReplaceAll(a.holds, "{took}", p.screen.duration(r.took))
}

func (p *player) keep(keeps []keep, output string) error {
	for _, k := range keeps {
		found := k.pattern.FindStringSubmatch(output)
		if found == nil {
			return fmt.Errorf("nothing matches %s in %q", k.pattern, output)
		}
		for i, name := range k.names {
			p.kept[name] = found[i+1]
		}
	}
	return nil
}

// fill puts what was kept into a text.
func (p *player) fill(line string) string {
	for _, name := range slices.Sorted(maps.Keys(p.kept)) {
		line = strings.ReplaceAll(line, "{"+name+"}", p.kept[name])
	}
	return line
}
