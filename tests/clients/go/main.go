// A client of Ottoscaler in grpc-go as it comes, from the .proto files and the published
// service config alone. What it does and prints: tests/clients/README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	pb "ottoscaler/clients/ottoscaler/v1"
)

var (
	servers    = flag.String("servers", "127.0.0.1:9090", "addresses of the replicas")
	config     = flag.String("config", "service_config.json", "the published service config")
	ca         = flag.String("ca", "", "file with the CA of the servers; plaintext without it")
	serverName = flag.String("server-name", "", "name in the servers' certificate")
	tokenFile  = flag.String("token-file", "", "file with a bearer token")
	task       = flag.String("task", "go", "task, or the beginning of its name")
	rate       = flag.Float64("rate", 5, "ScaleUps per second")
)

func main() {
	flag.Parse()
	channel := connect()
	defer channel.Close()
	client := &client{pb.NewOttoscalerServiceClient(channel), pb.NewOttoscalerAdminServiceClient(channel)}
	switch mode := flag.Arg(0); mode {
	case "methods":
		client.methods()
	case "pages":
		client.pages()
	case "scale":
		client.scale()
	default:
		log.Fatalf("no such mode: %q", mode)
	}
}

func connect() *grpc.ClientConn {
	published, err := os.ReadFile(*config)
	check("config", err)
	// With a headless Service the target is dns:///<release>-replicas.<namespace>.svc:9090.
	addresses := manual.NewBuilderWithScheme("replicas")
	state := resolver.State{}
	for _, address := range strings.Split(*servers, ",") {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	addresses.InitialState(state)
	transport := insecure.NewCredentials()
	if *ca != "" {
		transport, err = credentials.NewClientTLSFromFile(*ca, *serverName)
		check("ca", err)
	}
	channel, err := grpc.NewClient("replicas:///ottoscaler",
		grpc.WithResolvers(addresses),
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultServiceConfig(string(published)))
	check("channel", err)
	return channel
}

// Returns the context of a call, with the token as it is in its file now.
func call() context.Context {
	if *tokenFile == "" {
		return context.Background()
	}
	token, err := os.ReadFile(*tokenFile)
	check("token", err)
	return metadata.AppendToOutgoingContext(context.Background(),
		"authorization", "Bearer "+strings.TrimSpace(string(token)))
}

type client struct {
	workers pb.OttoscalerServiceClient
	admin   pb.OttoscalerAdminServiceClient
}

func request(task string, workers int32) *pb.ScaleRequest {
	return &pb.ScaleRequest{
		TaskId: task, Repository: "org/repo", CommitSha: "abc", WorkerCount: workers,
		// No node takes such a worker: it stays as it is.
		BuildConfig: map[string]string{"OTTO_NODE_SELECTOR": "kubernetes.io/arch=none"},
	}
}

// Calls each method once.
func (c *client) methods() {
	_, err := c.workers.ScaleUp(call(), request(*task, 1))
	ok("ScaleUp", err)
	c.pages()
	ok("GetWorkerStatus", nil)
	tasks, err := c.workers.ListTasks(call(), &pb.ListTasksRequest{Repository: "org/repo"})
	ok("ListTasks", err)
	if len(tasks.Tasks) == 0 {
		log.Fatal("ListTasks returned no task")
	}
	ctx, cancel := context.WithCancel(call())
	workers, err := c.workers.WatchWorkers(ctx, &pb.WorkerStatusRequest{TaskId: *task})
	check("WatchWorkers", err)
	ok("WatchWorkers", until(func() (bool, error) {
		event, err := workers.Recv()
		return event.GetType() == pb.WorkerEvent_SYNCED, err
	}))
	watched, err := c.workers.WatchTasks(ctx, &pb.ListTasksRequest{})
	check("WatchTasks", err)
	ok("WatchTasks", until(func() (bool, error) {
		event, err := watched.Recv()
		return event.GetType() == pb.TaskEvent_SYNCED, err
	}))
	cancel()
	lines, err := c.admin.ShowLogs(call(), &pb.ShowLogsRequest{TaskId: *task})
	check("ShowLogs", err)
	err = until(func() (bool, error) {
		_, err := lines.Recv()
		return false, err
	})
	if err == io.EOF {
		err = nil
	}
	ok("ShowLogs", err)
	_, err = c.admin.Pause(call(), &pb.PauseRequest{Reason: "a test"})
	ok("Pause", err)
	_, err = c.admin.Resume(call(), &pb.ResumeRequest{})
	ok("Resume", err)
	_, err = c.workers.ScaleDown(call(), request(*task, 0))
	ok("ScaleDown", err)
}

// Prints all workers, page by page.
func (c *client) pages() {
	token, pages := "", 0
	for {
		page, err := c.workers.GetWorkerStatus(call(), &pb.WorkerStatusRequest{TaskId: *task, PageToken: token})
		check("GetWorkerStatus", err)
		pages++
		for _, worker := range page.Workers {
			fmt.Println("pod", worker.PodName)
		}
		if token = page.NextPageToken; token == "" {
			fmt.Println("pages", pages)
			return
		}
	}
}

// Scales tasks up at the rate, and every fourth down again, until its standard input ends.
func (c *client) scale() {
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	var calls sync.WaitGroup
	ticks := time.NewTicker(time.Duration(float64(time.Second) / *rate))
	for n := 0; ; n++ {
		select {
		case <-ended:
			calls.Wait()
			fmt.Println("done")
			return
		case <-ticks.C:
			calls.Go(func() { c.upAndDown(fmt.Sprintf("%s-%d", *task, n), n%4 == 0) })
		}
	}
}

func (c *client) upAndDown(task string, down bool) {
	if _, err := c.workers.ScaleUp(call(), request(task, 1)); err != nil {
		fmt.Println("failed ScaleUp", task, err)
		return
	}
	fmt.Println("accepted", task)
	if !down {
		return
	}
	if _, err := c.workers.ScaleDown(call(), request(task, 0)); err != nil {
		fmt.Println("failed ScaleDown", task, err)
	}
}

func until(done func() (bool, error)) error {
	for {
		if is, err := done(); is || err != nil {
			return err
		}
	}
}

func ok(method string, err error) {
	check(method, err)
	fmt.Println("ok", method)
}

func check(what string, err error) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}
