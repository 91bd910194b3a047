// Command flux-apply reconciles a directory of manifests once, as Flux's kustomize-controller reconciles a Kustomization.
//
//	flux-apply -name NAME -namespace NAMESPACE -directory DIRECTORY -inventory FILE [-force] [-wait=false] [-timeout 1m]
//
// Libraries, options and order are those of kustomize-controller 1.9.6: a dry run of all objects of a stage, then their apply, then
// the deletion of objects that left the inventory, then the wait for health. It leaves out how Flux fetches and builds manifests, and
// the health of Jobs.
//
// KUBECONFIG names the cluster. It prints one JSON object: reason and message of the Ready condition that Flux would set, what became
// of each object, and the warnings of the API server. A reconciliation that fails is a result too, so the exit code is then 0.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/polling"
	"github.com/fluxcd/cli-utils/pkg/kstatus/polling/clusterreader"
	"github.com/fluxcd/cli-utils/pkg/kstatus/polling/engine"
	"github.com/fluxcd/cli-utils/pkg/object"
	"github.com/fluxcd/pkg/ssa"
	"github.com/fluxcd/pkg/ssa/normalize"
	"github.com/fluxcd/pkg/ssa/utils"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const (
	// fieldManager is the name of the controller.
	fieldManager = "kustomize-controller"
	// group is that of Kustomizations, and the prefix of their labels and annotations.
	group = "kustomize.toolkit.fluxcd.io"
	// concurrency is the default of --concurrent-ssa.
	concurrency = 4
	// healthInterval is the pause between two reads of the health: 5 s in Flux. It decides nothing, and a test should not wait for it.
	healthInterval = 200 * time.Millisecond
)

// The reasons of a Kustomization's Ready condition.
const (
	succeeded         = "ReconciliationSucceeded"
	buildFailed       = "BuildFailed"
	applyFailed       = "ReconciliationFailed"
	pruneFailed       = "PruneFailed"
	healthCheckFailed = "HealthCheckFailed"
)

// kustomization has the fields of a Kustomization that matter once its manifests are built. Its `prune` is true.
type kustomization struct {
	name, namespace, directory, inventory string
	force, wait                           bool
	timeout                               time.Duration
}

// result is the outcome of one reconciliation.
type result struct {
	Reason   string   `json:"reason"`
	Message  string   `json:"message"`
	Changes  []change `json:"changes"`
	Warnings []string `json:"warnings"`
}

// change says what became of an object: created, configured, unchanged, skipped or deleted.
type change struct {
	Subject string     `json:"subject"`
	Action  ssa.Action `json:"action"`
}

// reference names an object in the inventory.
type reference struct {
	ID      string `json:"id"`
	Version string `json:"v"`
}

func main() {
	k := &kustomization{}
	flag.StringVar(&k.name, "name", "", "metadata.name of the Kustomization")
	flag.StringVar(&k.namespace, "namespace", "", "metadata.namespace of the Kustomization")
	flag.StringVar(&k.directory, "directory", "", "directory of the manifests")
	flag.StringVar(&k.inventory, "inventory", "", "file that keeps status.inventory until the next reconciliation")
	flag.BoolVar(&k.force, "force", false, "spec.force")
	flag.BoolVar(&k.wait, "wait", true, "spec.wait")
	flag.DurationVar(&k.timeout, "timeout", time.Minute, "spec.timeout")
	flag.Parse()
	if k.name == "" || k.namespace == "" || k.directory == "" || k.inventory == "" || flag.NArg() != 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(k); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(k *kustomization) error {
	log.SetLogger(logr.Discard())
	warnings := &collector{}
	manager, err := newResourceManager(warnings)
	if err != nil {
		return err
	}
	before, err := k.readInventory()
	if err != nil {
		return err
	}
	changes := ssa.NewChangeSet()
	reason, failure := k.reconcile(context.Background(), manager, before, changes)
	output := result{Reason: reason, Message: "Applied", Changes: []change{}, Warnings: warnings.sorted()}
	if failure != nil {
		output.Message = failure.Error()
	}
	for _, entry := range changes.Entries {
		output.Changes = append(output.Changes, change{Subject: entry.Subject, Action: entry.Action})
	}
	return json.NewEncoder(os.Stdout).Encode(output)
}

// newResourceManager sets it up as kustomize-controller does where the API server has priority and fairness: without a limit of the
// rate, and without caches.
func newResourceManager(warnings rest.WarningHandler) (*ssa.ResourceManager, error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = -1, -1
	config.WarningHandler = warnings
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	mapper, err := apiutil.NewDynamicRESTMapper(config, httpClient)
	if err != nil {
		return nil, err
	}
	kubeClient, err := client.New(config, client.Options{HTTPClient: httpClient, Mapper: mapper})
	if err != nil {
		return nil, err
	}
	poller := polling.NewStatusPoller(kubeClient, mapper, polling.Options{
		ClusterReaderFactory: engine.ClusterReaderFactoryFunc(clusterreader.NewDirectClusterReader),
	})
	manager := ssa.NewResourceManager(kubeClient, poller, ssa.Owner{Field: fieldManager, Group: group})
	manager.SetConcurrency(concurrency)
	return manager, nil
}

// reconcile adds what it does to changes, and returns the reason of the Ready condition.
func (k *kustomization) reconcile(ctx context.Context, manager *ssa.ResourceManager, before []reference, changes *ssa.ChangeSet) (string, error) {
	objects, err := k.build()
	if err != nil {
		return buildFailed, err
	}
	manager.SetOwnerLabels(objects, k.name, k.namespace)
	if err := normalize.UnstructuredList(objects); err != nil {
		return applyFailed, err
	}
	if len(objects) > 0 {
		applied, err := manager.ApplyAllStaged(ctx, objects, k.applyOptions())
		if applied != nil {
			changes.Append(applied.Entries)
		}
		if err != nil {
			// The inventory stays as it was, even where some of the objects were applied.
			return applyFailed, err
		}
	}

	var after []reference
	var checked object.ObjMetadataSet
	for _, entry := range changes.Entries {
		after = append(after, reference{ID: entry.ObjMetadata.String(), Version: entry.GroupVersion})
		if entry.Action != ssa.SkippedAction {
			checked = append(checked, entry.ObjMetadata)
		}
	}
	survivors, err := k.prune(ctx, manager, before, after, changes)
	if err := errors.Join(err, k.writeInventory(append(after, survivors...))); err != nil {
		return pruneFailed, err
	}

	if k.wait {
		options := ssa.WaitOptions{Interval: healthInterval, Timeout: k.timeout, FailFast: true}
		if err := manager.WaitForSetWithContext(ctx, checked, options); err != nil {
			return healthCheckFailed, fmt.Errorf("health check failed: %w", err)
		}
	}
	return succeeded, nil
}

// build reads the manifests, as a kustomization.yaml that lists all of them would give them.
func (k *kustomization) build() ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(k.directory, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		read, err := utils.ReadObjects(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		objects = append(objects, read...)
	}
	return objects, nil
}

func (k *kustomization) applyOptions() ssa.ApplyOptions {
	options := ssa.DefaultApplyOptions()
	options.Force = k.force
	options.ExclusionSelector = map[string]string{group + "/reconcile": "disabled", group + "/ssa": "Ignore"}
	options.IfNotPresentSelector = map[string]string{group + "/ssa": "IfNotPresent"}
	options.ForceSelector = map[string]string{group + "/force": "enabled"}
	options.Cleanup = ssa.ApplyCleanupOptions{
		Annotations: []string{
			corev1.LastAppliedConfigAnnotation,
			group + "/checksum",
			"fluxcd.io/sync-checksum",
		},
		Labels: []string{"fluxcd.io/sync-gc-mark"},
		// Each is a prefix: fields that kubectl changed in whatever way become Flux's, which removes those that Git does not have.
		FieldManagers: []ssa.FieldManager{
			{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationApply},
			{Name: "kubectl", OperationType: metav1.ManagedFieldsOperationUpdate},
			{Name: "before-first-apply", OperationType: metav1.ManagedFieldsOperationUpdate},
			{Name: fieldManager, OperationType: metav1.ManagedFieldsOperationUpdate},
		},
		Exclusions: map[string]string{group + "/ssa": "Merge"},
	}
	return options
}

// prune deletes the objects that are in `before` alone, and returns those that it could not delete.
func (k *kustomization) prune(ctx context.Context, manager *ssa.ResourceManager, before, after []reference, changes *ssa.ChangeSet) ([]reference, error) {
	kept := map[string]bool{}
	for _, reference := range after {
		kept[reference.ID] = true
	}
	stale := map[string]reference{}
	var objects []*unstructured.Unstructured
	for _, reference := range before {
		if kept[reference.ID] {
			continue
		}
		metadata, err := object.ParseObjMetadata(reference.ID)
		if err != nil {
			return nil, err
		}
		stale[reference.ID] = reference
		stored := &unstructured.Unstructured{}
		stored.SetGroupVersionKind(schema.GroupVersionKind{
			Group: metadata.GroupKind.Group, Version: reference.Version, Kind: metadata.GroupKind.Kind,
		})
		stored.SetName(metadata.Name)
		stored.SetNamespace(metadata.Namespace)
		objects = append(objects, stored)
	}
	deleted, err := manager.DeleteAll(ctx, objects, ssa.DeleteOptions{
		PropagationPolicy: metav1.DeletePropagationBackground,
		Inclusions:        manager.GetOwnerLabels(k.name, k.namespace),
		Exclusions: map[string]string{
			group + "/prune": "disabled", group + "/reconcile": "disabled", group + "/ssa": "Ignore",
		},
	})
	changes.Append(deleted.Entries)
	for _, entry := range deleted.Entries {
		if entry.Action == ssa.DeletedAction || entry.Action == ssa.SkippedAction {
			delete(stale, entry.ObjMetadata.String())
		}
	}
	var survivors []reference
	for _, reference := range stale {
		survivors = append(survivors, reference)
	}
	return survivors, err
}

// readInventory returns none before the first reconciliation.
func (k *kustomization) readInventory() ([]reference, error) {
	text, err := os.ReadFile(k.inventory)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var references []reference
	return references, json.Unmarshal(text, &references)
}

func (k *kustomization) writeInventory(references []reference) error {
	text, err := json.Marshal(references)
	if err != nil {
		return err
	}
	return os.WriteFile(k.inventory, text, 0o644)
}

// collector keeps each warning of the API server once.
type collector struct {
	mutex    sync.Mutex
	warnings map[string]bool
}

func (c *collector) HandleWarningHeader(code int, _ string, text string) {
	if code != 299 || text == "" {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.warnings == nil {
		c.warnings = map[string]bool{}
	}
	c.warnings[text] = true
}

func (c *collector) sorted() []string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	texts := []string{}
	for text := range c.warnings {
		texts = append(texts, text)
	}
	sort.Strings(texts)
	return texts
}
