package demo

import "time"

func theEnd() step {
	const scale = "kubectl -n shop scale statefulset web --replicas=3"
	const listPods = "kubectl -n shop get pods"
	return step{"The task ends, and the access with it", []act{
		{
			why:   "By itself: a second grant lets alpha scale the shop, for six seconds.",
			who:   operator,
			types: "kubectl apply -f change.yaml && kubectl wait --for=condition=Active tg/chg-12",
			wants: works("taskgrant.taskgate.dev/chg-12 condition met"),
			shows: only("taskgrant"),
		},
		{
			who:   alpha,
			types: scale,
			wants: works("statefulset.apps/web scaled"),
		},
		{
			who:   operator,
			types: "kubectl wait --for=condition=Ended tg/chg-12",
			wants: works("taskgrant.taskgate.dev/chg-12 condition met"),
		},
		{
			who:   alpha,
			types: scale,
			wants: append(refused("GrantExpired"), says("chg-12")),
			shows: what,
			holds: "six seconds later the same command is refused",
		},
		{
			why:   "By hand: while alpha watches the pods, the operator ends its first task.",
			who:   alpha,
			types: listPods + " --watch",
			meanwhile: &act{
				who:   operator,
				types: `kubectl patch taskgrant inc-4711 --type=merge -p '{"spec":{"revoked":true}}'`,
				wants: works("taskgrant.taskgate.dev/inc-4711 patched"),
			},
			wants: []want{exits(0), says("[taskgate:GrantRevoked]"), within(5 * time.Second)},
			shows: what,
			holds: "the open connection is cut{took} and says why",
		},
		{
			who:   alpha,
			types: listPods,
			wants: append(refused("GrantRevoked"), says("inc-4711")),
			shows: what,
			holds: "and what worked before is refused",
		},
	}}
}
