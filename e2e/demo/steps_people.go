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
