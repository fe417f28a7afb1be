package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/minio/minio-go/v7"
	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// BucketName is the name under which this program is Bucket.
const BucketName = "bucket"

// store is the bucket, as whoever the environment says.
type store struct{ endpoint, name string }

// Bucket is a small S3 client, so that the demo needs none to be installed. It
// goes through the front door of the store, with the credentials of whoever runs
// it, and adds nothing to what the store answers.
func Bucket(output io.Writer) *cobra.Command {
	s := new(store)
	root := &cobra.Command{
		Use:   BucketName,
		Short: "Look at the record's bucket, and try to change it",
		Long: `Bucket is a small S3 client for the demo. It takes AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, and nobody's credentials without them.`,
		SilenceErrors: true, SilenceUsage: true,
	}
	root.SetOut(output)
	root.PersistentFlags().StringVar(&s.endpoint, "endpoint", os.Getenv("TASKGATE_S3_ENDPOINT"), "`URL` of the store")
	root.PersistentFlags().StringVar(&s.name, "bucket", os.Getenv("TASKGATE_S3_BUCKET"), "`name` of the bucket")
	root.AddCommand(s.listCommand(), s.copyCommand(), s.deleteCommand(), flipCommand())
	return root
}

func (s *store) client() (*minio.Client, error) {
	user := testbed.Credentials{Key: os.Getenv("AWS_ACCESS_KEY_ID"), Secret: os.Getenv("AWS_SECRET_ACCESS_KEY")}
	return testbed.ObjectStore{Endpoint: s.endpoint, Region: "us-east-1"}.Client(user)
}

func (s *store) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list [PREFIX]", Short: "List objects with their versions", Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			prefix := append(arguments, "")[0]
			return s.each(command.Context(), minio.ListObjectsOptions{Prefix: prefix, Recursive: true, WithVersions: true},
				func(_ *minio.Client, object minio.ObjectInfo) error {
					_, err := fmt.Fprintf(command.OutOrStdout(), "%s  %s\n", object.Key, object.VersionID)
					return err
				})
		},
	}
}

func (s *store) copyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "copy FOLDER", Short: "Copy all objects into a folder", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			folder, count := arguments[0], 0
			err := s.each(command.Context(), minio.ListObjectsOptions{Recursive: true}, func(client *minio.Client, object minio.ObjectInfo) error {
				count++
				return client.FGetObject(command.Context(), s.name, object.Key, filepath.Join(folder, filepath.FromSlash(object.Key)), minio.GetObjectOptions{})
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(command.OutOrStdout(), "copied %d objects into %s\n", count, folder)
			return err
		},
	}
}

// each does something with all objects there were when it began.
func (s *store) each(ctx context.Context, options minio.ListObjectsOptions, do func(*minio.Client, minio.ObjectInfo) error) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	var all []minio.ObjectInfo
	for object := range client.ListObjects(ctx, s.name, options) {
		if object.Err != nil {
			return answer(object.Err)
		}
		all = append(all, object)
	}
	for _, object := range all {
		if err := do(client, object); err != nil {
			return answer(err)
		}
	}
	return nil
}

func (s *store) deleteCommand() *cobra.Command {
	var options minio.RemoveObjectOptions
	command := &cobra.Command{
		Use: "delete KEY VERSION", Short: "Delete one version of an object for good", Args: cobra.ExactArgs(2),
		RunE: func(command *cobra.Command, arguments []string) error {
			client, err := s.client()
			if err != nil {
				return err
			}
			options.VersionID = arguments[1]
			if err := client.RemoveObject(command.Context(), s.name, arguments[0], options); err != nil {
				return answer(err)
			}
			_, err = fmt.Fprintln(command.OutOrStdout(), "deleted")
			return err
		},
	}
	command.Flags().BoolVar(&options.GovernanceBypass, "bypass-governance", false, "use the right to undo locks of mode GOVERNANCE")
	return command
}

// answer is what the store said, in its own words.
func answer(err error) error {
	var said minio.ErrorResponse
	if errors.As(err, &said) && said.StatusCode != 0 {
		return fmt.Errorf("the store answered %d %s: %s", said.StatusCode, said.Code, said.Message)
	}
	return fmt.Errorf("asking the store: %w", err)
}

func flipCommand() *cobra.Command {
	return &cobra.Command{
		Use: "flip FILE", Short: "Flip one bit in the middle of a file", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			content, err := os.ReadFile(arguments[0])
			if err != nil {
				return fmt.Errorf("reading the file: %w", err)
			}
			if len(content) == 0 {
				return fmt.Errorf("%s is empty", arguments[0])
			}
			content[len(content)/2] ^= 1
			if err := os.WriteFile(arguments[0], content, 0o644); err != nil {
				return fmt.Errorf("writing the file: %w", err)
			}
			_, err = fmt.Fprintf(command.OutOrStdout(), "flipped 1 of %d bits\n", 8*len(content))
			return err
		},
	}
}
