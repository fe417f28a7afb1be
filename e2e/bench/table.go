package bench

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Markdown is the report for people.
func (r *Report) Markdown() string {
	var out strings.Builder
	r.writeHead(&out)
	for _, g := range r.Gates {
		line(&out, "- %s", g)
	}
	for _, p := range r.Problems {
		line(&out, "- PROBLEM %s", p)
	}
	r.writeBlocks(&out)
	r.writeMemory(&out)
	r.writeGrants(&out)
	r.writeExecs(&out)
	r.writeMicro(&out)
	return out.String()
}

// line writes to a builder, which cannot fail.
func line(out io.Writer, format string, arguments ...any) {
	_, _ = fmt.Fprintf(out, format+"\n", arguments...)
}

func (r *Report) writeHead(out io.Writer) {
	m := r.Machine
	line(out, "Commit %s, %s, took %s; `%s`.", r.Commit, r.Began.UTC().Format(time.RFC3339), r.Took, r.Command)
	line(out, "%d x %s, %d GB, Linux %s, %s; spool on %s; SPIFFE %s, versitygw; %d rounds of %s per contender.",
		m.CPUs, m.CPU, m.MemoryGB, m.Kernel, m.Go, m.Spool, r.SPIFFE, r.Rounds, r.Duration)
	line(out, "Values are medians over rounds with 95 %% intervals; those of one row belong together, and ratios are taken within a round.\n")
}

func (r *Report) writeBlocks(out io.Writer) {
	for _, b := range r.Blocks {
		line(out, "\n### %s\n", b.Title)
		line(out, "%s\n", b.quietness())
		header := []string{"", "p50 us", "p99 us", "added p50 us", "added p99 us", "calls/s", "MB/s", "to direct", "to twin", "CPU us per call"}
		line(out, "| %s |\n|%s", strings.Join(header, " | "), strings.Repeat("---|", len(header)))
		for _, row := range b.Rows {
			line(out, "| %s |", strings.Join([]string{
				row.Contender, row.P50.median(0), row.P99.median(0), row.AddedP50.format(0), row.AddedP99.median(0),
				row.RPS.median(0), row.MBs.median(0), row.ToDirect.format(2), row.ToTwin.format(2), row.cpu(),
			}, " | "))
		}
	}
}

// quietness says how far the machine was to be trusted.
func (b BlockResult) quietness() string {
	var hashes, pings, foreign []float64
	for _, r := range b.Rounds {
		hashes, pings, foreign = append(hashes, r.Canary.SHA256), append(pings, r.Canary.Ping), append(foreign, 100*r.Canary.Foreign)
	}
	text := fmt.Sprintf("%d of %d rounds count; canaries: SHA-256 %.0f MB/s, loopback ping %.0f us, others' CPU %.0f %%.",
		b.Counted, len(b.Rounds), median(hashes), median(pings), median(foreign))
	if b.Disturbed {
		text += " **The machine was disturbed in most rounds; all count.**"
	}
	return text
}

// cpu lists the processes in the order of a call.
func (row Row) cpu() string {
	var parts []string
	for _, process := range []string{clientProcess, "sidecar", "hop 1", "broker", "hop 2", "kube-apiserver", "etcd", "s3"} {
		if value, found := row.CPU[process]; found && value.Median >= 0.5 {
			parts = append(parts, fmt.Sprintf("%s %.0f", process, value.Median))
		}
	}
	return strings.Join(parts, ", ")
}

func (r *Report) writeMemory(out io.Writer) {
	if len(r.Watches) > 0 {
		line(out, "\n### %d idle watches\n", r.WatchCount)
		line(out, "| | process | RSS KB per watch | of it anonymous | RSS KB per watch if busy before and after | RSS MB before | sockets | CPU of a core while idle |\n|---|---|---|---|---|---|---|---|")
		for _, m := range r.Watches {
			line(out, "| %s | %s | %s | %s | %s | %.0f | %s | %s %% |", m.Contender, m.Process, m.Resident.format(1), m.Anonymous.median(1), m.Busy.format(1),
				m.Before.Median/1024, m.Sockets.median(0), m.IdleCPU.median(1))
		}
	}
	if len(r.BigLists) > 0 {
		line(out, "\n### LIST of %d MB\n", r.BigLists[0].Bytes>>20)
		line(out, "| | process | RSS rises by MB | RSS MB before | CPU ms per MB | MB/s |\n|---|---|---|---|---|---|")
		for _, l := range r.BigLists {
			line(out, "| %s | %s | %s | %s | %s | %s |", l.Contender, l.Process, l.Rise.format(1), l.Before.median(0), l.CPU.median(2), l.Speed.median(0))
		}
	}
}

func (r *Report) writeGrants(out io.Writer) {
	if m := r.ManyGrants; m != nil {
		line(out, "\n### A broker's start before many grants\n")
		line(out, "| active grants | s from start to ready | RSS MB at most |\n|---|---|---|")
		line(out, "| %d | %s | %s |", m.Grants, m.Ready.format(1), m.Peak.format(0))
	}
}

func (r *Report) writeExecs(out io.Writer) {
	if len(r.Execs) == 0 {
		return
	}
	line(out, "\n### A command that prints a lot, over WebSocket\n")
	line(out, "| | MB/s | to twin | CPU ns per byte |\n|---|---|---|---|")
	for _, e := range r.Execs {
		var parts []string
		for _, process := range []string{"sidecar", "hop 1", "broker", "hop 2"} {
			if value, found := e.CPU[process]; found {
				parts = append(parts, fmt.Sprintf("%s %s", process, value.format(1)))
			}
		}
		line(out, "| %s | %s | %s | %s |", e.Contender, e.Speed.format(0), e.ToTwin.format(2), strings.Join(parts, ", "))
	}
}

func (r *Report) writeMicro(out io.Writer) {
	if len(r.Decisions) > 0 {
		line(out, "\n### Decision on a pinned connection\n")
		line(out, "| grants of others | ns | allocations |\n|---|---|---|")
		for _, d := range r.Decisions {
			line(out, "| %s | %s | %s |", d.Others, d.Nanoseconds.format(1), d.Allocations.median(0))
		}
	}
	if len(r.Spool) > 0 {
		line(out, "\n### Spool (a bare fdatasync of 4 KiB: %.0f us)\n", r.SyncMicroseconds)
		line(out, "| writers | durable records/s |\n|---|---|")
		for _, s := range r.Spool {
			line(out, "| %s | %s |", s.Writers, s.Records.format(0))
		}
	}
}
