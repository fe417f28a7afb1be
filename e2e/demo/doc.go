// Package demo shows taskgate to somebody who has never seen it, and proves what
// it shows.
//
// The demo is a play of steps (steps.go, steps_end.go, steps_record.go). A step
// is data: a title and acts; an act is a command as a person would type it, who
// types it, and what has to come of it. To add a step, write a function that
// returns one and name it in steps.
//
// What is shown is what happens: each line after a prompt went to a shell, in an
// environment that holds what that person or agent has and nothing else (cast.go),
// and each ✓ stands for a check of its real outcome (check.go). The first check
// that does not hold ends the play with an error.
//
// The YAML the demo applies is in the folder example, to be read and reused.
package demo
