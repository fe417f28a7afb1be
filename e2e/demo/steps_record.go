package demo

import "regexp"

func outOfReach() step {
	return step{"The record is out of reach", []act{
		{
			why:   "Each call is on record before it is answered, refused or not, and a second later in a locked bucket.",
			who:   auditor,
			types: "bucket list v1/journal/ | head -n 1",
			wants: []want{exits(0), matches(`^v1/journal/\S+\.jsonl\.zst  \S+\n$`)},
			keeps: []keep{{regexp.MustCompile(`^(\S+)  (\S+)`), []string{"object", "version"}}},
		},
		{
			why:   "Alpha's only way out is its sidecar. Does it lead to other services in the cluster?",
			who:   alpha,
			types: "kubectl get --raw /api/v1/namespaces/shop/services/web/proxy",
			wants: refused("PolicyDenied"),
			shows: what,
			holds: "no, whatever a grant says: the sidecar is no tunnel",
		},
		{
			why:   "In a pod there is no other way. On this one machine there is, so alpha tries the store's own address.",
			who:   alpha,
			types: "bucket --endpoint={store} --bucket=taskgate delete {object} {version}",
			wants: []want{fails(), says("the store answered 403 AccessDenied")},
			holds: "it has no credential for the store",
		},
		{
			why:   "Somebody steals the broker's own S3 key.",
			who:   broker,
			types: "bucket delete {object} {version}",
			wants: []want{fails(), says("the store answered 403 AccessDenied")},
			holds: "the key can write new records, it cannot delete one",
		},
		{
			why:   "The administrator of the store has every right there is.",
			who:   storeAdmin,
			types: "bucket delete {object} {version} --bypass-governance",
			wants: []want{fails(), says("the store answered 4"), matches(`object lock|WORM`)},
			holds: "until the lock ends nobody can delete it, not even the administrator",
		},
	}}
}

func theProof() step {
	verdict := only("copied", "PROVEN", "BROKEN", "  not checked")
	return step{"The record is whole, and a stranger can prove it", []act{
		{
			why:   "What was refused?",
			who:   auditor,
			types: "taskgate records --decision=deny",
			wants: works("OutsideGrant", "NoGrant", "ApprovalRequired", "ApprovalMismatch", "ApprovalConsumed", "GrantExpired", "GrantRevoked", "PolicyDenied", "shop secrets database"),
			shows: table,
			holds: "each refusal of this demo is on record", patience: patience,
		},
		{
			why:   "The proof takes read access to the bucket and the platform's public keys. It asks nothing of the broker.",
			who:   auditor,
			types: "taskgate verify",
			wants: []want{exits(0), matches(`^PROVEN: \d+ records`)},
			holds: "no record is missing, changed, unsigned or unlocked",
			shows: verdict,
		},
		{
			why:   "It also works on a copy, far from the store.",
			who:   auditor,
			types: "bucket copy copy && taskgate verify copy",
			wants: append(works("not checked: locks", "not checked: versions"), matches(`(?m)^PROVEN: `)),
			holds: "a copy proves itself too; it says what only the store can tell",
			shows: verdict,
		},
		{
			why:   "Now one single bit of the copy is changed.",
			who:   auditor,
			types: "bucket flip copy/{object} && taskgate verify copy",
			wants: []want{exits(1), matches(`(?m)^BROKEN: .*hash_mismatch.* record 1\b`), says("({object})")},
			holds: "verify finds it, and names the record and the object",
			shows: only("flipped", "BROKEN"),
		},
	}}
}
