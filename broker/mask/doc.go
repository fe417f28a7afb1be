// Package mask takes the values out of answers that carry Secrets.
//
// A rule with `values: Redacted` shows an agent which Secrets there are and which
// keys they have, and no value. The broker asks the cluster for JSON, whatever
// the agent wanted ([Accept]), and sends the agent what [Copy] makes of it.
//
// # What it promises
//
//   - What is written is made of what was understood, field by field: the fields
//     a Secret, a list, a Table, a watch event and a Status may show are listed
//     (field.go), and every other field is left out. No value of data, stringData
//     or an annotation is ever copied; the types that stand for them hold none.
//   - Keys of data, stringData and annotations stay, as do type, labels, owners
//     and finalizers. The annotation of kubectl apply is masked like the object
//     it holds, so that kubectl can still compare keys. managedFields are left
//     out: nobody needs them to read, the API server keeps them when an object is
//     written without, and what is not there cannot show anything.
//   - Every mask is the same text, whatever it stands for, so that neither a
//     length nor a hash says anything.
//   - Lists are masked item by item and watches event by event, in memory that
//     does not grow with their number.
//
// # Which way it fails
//
// Closed: what is no JSON of that shape, or larger than an object in etcd can be,
// is an [*UnreadableError], which quotes nothing of it. Of a short answer nothing
// was written then; of a long list the beginning, masked.
//
// The package is pure: it makes no calls, keeps no state, and never logs.
package mask
