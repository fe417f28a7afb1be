package demo

import "regexp"

func people() step {
	const tidyUp = "kubectl delete namespace shop-old --wait=false"
	return step{"A risky call waits for a person, who says yes to exactly that", []act{
		{
			why:   "Alice is one of the group sre. An operator lets that group decide; it gives them no other right.",
			who:   operator,
			types: "kubectl create clusterrolebinding sre-decides --clusterrole=taskgate-approver --group=sre",
			wants: works("sre-decides created"),
		},
		{
			why:   "Alpha asks for a task of its own, with plain kubectl. It lies inside the policy, so it has it at once.",
			who:   alpha,
			types: "kubectl create -f ask.yaml && kubectl wait --for=condition=Active taskgrant/chg-13 --timeout=30s",
			wants: works("taskgrant.taskgate.dev/chg-13 created", "chg-13 condition met"),
		},
		{
			why:   "But deleting a namespace is gated.",
			who:   alpha,
			types: tidyUp,
			wants: append(refused("ApprovalRequired"), says("1 approval from sre"), says("Next: kubectl wait --for=condition=Decided approval/ap-")),
			keeps: []keep{{regexp.MustCompile(`request (ap-[0-9a-f]+-\d+)`), []string{"approval"}}},
			holds: "the answer names the request, and the command to wait with",
		},
		{
			who:   alice,
			types: "taskgate show {approval}",
			wants: works("shop-old", "CHG-13", "sre"),
			holds: "alice sees what would happen, who asks and why, and what her yes would mean",
		},
		{
			who:   alice,
			types: `taskgate approve {approval} --yes --reason="nobody uses it"`,
			wants: works("{approval}"),
		},
		{
			who:   alpha,
			types: "kubectl wait --for=condition=Decided approval/{approval} --timeout=30s",
			wants: works("condition met"),
		},
		{
			why:   "A yes is for one call, byte for byte. Alpha tries a slightly different one.",
			who:   alpha,
			types: tidyUp + " --cascade=orphan",
			wants: refused("ApprovalMismatch"),
			shows: what,
			holds: "what alice did not see does not pass",
		},
		{
			who:   alpha,
			types: tidyUp,
			wants: works("namespace \"shop-old\" deleted"),
			holds: "the very same command passes",
		},
		{
			who:   alice,
			types: "kubectl get approval {approval} -o jsonpath='{.status.conditions[?(@.type==\"Consumed\")].status}{\"\\n\"}'",
			wants: works("True"),
		},
		{
			who:   alpha,
			types: tidyUp,
			wants: refused("ApprovalConsumed"),
			shows: what,
			holds: "once",
		},
	}}
}

func inPod() step {
	const look = `kubectl -n shop exec web-0 -- sh -c 'echo 17 orders wait; sleep 1; echo disk is full >&2'`
	return step{"What happens in a pod is recorded, and can be played back", []act{
		{
			why:   "Alpha wants to look into a pod, and asks for a task for that.",
			who:   alpha,
			types: "kubectl create -f look.yaml && kubectl wait --for=condition=Active taskgrant/inc-4712 --timeout=30s",
			wants: works("taskgrant.taskgate.dev/inc-4712 created", "inc-4712 condition met"),
			shows: only("created"),
		},
		{
			why:   "Running a command in a pod always waits for a person, unless a policy waives it.",
			who:   alpha,
			types: look,
			wants: append(refused("ApprovalRequired"), says("Next: kubectl wait --for=condition=Decided approval/ap-")),
			keeps: []keep{{regexp.MustCompile(`request (ap-[0-9a-f]+-\d+)`), []string{"look"}}},
			shows: what,
		},
		{
			who:   alice,
			types: `taskgate approve {look} --yes --reason="have a look"`,
			wants: works("{look}"),
		},
		{
			who:   alpha,
			types: look,
			wants: works("17 orders wait", "disk is full"), patience: patience,
			holds: "the very command that alice saw runs, once",
		},
		{
			why:   "All that was typed and printed is in the bucket, piece by piece, and was there before alpha saw it.",
			who:   auditor,
			types: "taskgate streams",
			wants: []want{exits(0), matches(`(?m)^\S+ +[0-9a-f-]{36} .*/sa/alpha .*INC-4712 .*exec shop/web-0 .* exit 0`)},
			keeps: []keep{{regexp.MustCompile(`(?m)^\S+ +([0-9a-f-]{36}) `), []string{"stream"}}},
			shows: nothing, patience: patience,
			holds: "it is listed with the command, the task, and how it ended",
		},
		{
			who:   auditor,
			types: "taskgate replay {stream}",
			wants: works("17 orders wait", "disk is full"), patience: patience,
			holds: "what alpha saw can be seen again",
		},
	}}
}
