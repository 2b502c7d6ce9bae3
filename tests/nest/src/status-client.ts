// Asks a replica for the state of workers through grpc-js as it comes, from the .proto file
// alone: first one call at a time, then several in flight. Prints, each as one number: how
// many workers an answer has, the median and the 99th percentile of the single calls in
// milliseconds, calls per second one at a time, and calls per second in flight.
//
// Environment: SERVER (host:port), PROTO (path of ottoscaler.proto), TASK, CALLS (500),
// IN_FLIGHT (16).
import { credentials, loadPackageDefinition, ServiceError } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

interface WorkerStatusRequest {
  taskId: string;
}

interface WorkerStatusResponse {
  workers: unknown[];
}

interface StatusClient {
  getWorkerStatus(
    request: WorkerStatusRequest,
    answer: (error: ServiceError | null, response?: WorkerStatusResponse) => void,
  ): void;
  close(): void;
}

const env = (name: string, fallback: string) => process.env[name] ?? fallback;
const now = () => Number(process.hrtime.bigint()) / 1e6;

function connect(server: string): StatusClient {
  const proto = loadPackageDefinition(loadSync(env('PROTO', 'ottoscaler.proto'))) as any;
  return new proto.ottoscaler.v1.OttoscalerService(server, credentials.createInsecure());
}

async function main() {
  const client = connect(env('SERVER', '127.0.0.1:9090'));
  const request = { taskId: env('TASK', '') };
  const [calls, inFlight] = [Number(env('CALLS', '500')), Number(env('IN_FLIGHT', '16'))];
  const ask = () =>
    new Promise<number>((resolve, reject) =>
      client.getWorkerStatus(request, (error, response) =>
        error ? reject(error) : resolve(response!.workers.length),
      ),
    );

  // The first call connects.
  const workers = await ask();
  const took: number[] = [];
  const began = now();
  for (let n = 0; n < calls; n++) {
    const asked = now();
    await ask();
    took.push(now() - asked);
  }
  const alone = (calls / (now() - began)) * 1e3;
  took.sort((a, b) => a - b);
  const at = (share: number) => took[Math.min(calls - 1, Math.floor(calls * share))];

  let left = calls;
  const together = now();
  const caller = async () => {
    while (left-- > 0) await ask();
  };
  await Promise.all(Array.from({ length: inFlight }, caller));
  const busy = (calls / (now() - together)) * 1e3;

  console.log(workers, ...[at(0.5), at(0.99), alone, busy].map((n) => n.toFixed(3)));
  client.close();
}

void main();
