// A whole back-end program around one device: `rng-backend SOCKET` serves entropy to front-ends until it is killed. What a
// program of your own needs is these steps; `vhost-swiftd` adds options, signals and statistics.

import DeviceKit
import EntropyDevice
import Glibc
import HostIO
import Logging
import VhostUser

@main
struct RngBackend {
  static func main() {
    let log = Logger(label: "rng-backend")
    guard CommandLine.arguments.count == 2 else {
      log.error("usage: rng-backend SOCKET")
      exit(2)
    }
    do {
      // A thread with its io_uring, the device's queues on it, and a socket; then the thread, then the front-ends.
      let thread = try QueueThread(name: "rng", cpus: [], policy: .adaptive, seats: 1, files: 0)
      let host = try DeviceHost(device: EntropyDevice(), threads: [thread])
      let listener = try UnixListener(path: CommandLine.arguments[1])
      let server = try VhostUserServer(host: host, endpoint: .listener(listener), log: log)
      _ = try thread.start()
      try server.start()
      server.finish()
    } catch {
      log.error("\(error)")
      exit(1)
    }
  }
}
