// A load generator for any vhost-user disk: drives the back-end behind a socket through `VhostFrontend`, for a time, and prints one
// line of JSON: rate, latencies, what the server's process spent on each request, who slept. `disk-bench --help` tells the options.
// `scripts/bench` runs it; pin it and the server to different processors.

import Foundation
import VhostFrontend

@main
struct DiskBench {
  static func main() {
    do {
      let options = try LoadOptions(Array(CommandLine.arguments.dropFirst()))
      if options.help {
        print(LoadOptions.usage)
        return
      }
      print(try measure(options).json)
    } catch {
      FileHandle.standardError.write(Data("disk-bench: \(error)\n".utf8))
      exit(1)
    }
  }

  /// One session: a warm-up, then the time that counts.
  private static func measure(_ options: LoadOptions) throws -> LoadReport {
    let driver = try BlockDriver(path: options.socket, waiting: .seconds(10), options.disk)
    let sectors = driver.config.capacity
    let span = min(options.span ?? .max, sectors * 512) / UInt64(options.bytes)
    guard span > 0 else { throw LoadError.diskTooSmall(bytes: sectors * 512) }
    // Whether requests are answered at all, before anything is counted.
    _ = try driver.read(sector: 0, bytes: 512)
    var load = Load(driver, options, places: span)
    _ = try load.run(nanoseconds: options.warmup)
    if options.idle { try load.finish() }
    let before = ServerFacts(of: options.server)
    let figures =
      try options.idle ? load.rest(nanoseconds: options.time) : load.run(nanoseconds: options.time)
    let after = ServerFacts(of: options.server)
    try load.finish()
    _ = try? driver.stop()
    driver.disconnect()
    return LoadReport(options: options, figures: figures, server: after.since(before))
  }
}
