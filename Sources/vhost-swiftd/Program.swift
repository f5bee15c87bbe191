// The program: dispatches to a subcommand and turns every failure into one line and a status: 2 for usage, 1 for the rest.

import ArgumentParser
import Glibc
import HostIO

@main
struct Program: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vhost-swiftd",
    abstract: "Serves virtio devices to virtual machines over vhost-user.",
    discussion: """
      One process serves one device on one socket. A VMM (QEMU, cloud-hypervisor, crosvm, libblkio, DPDK) connects, \
      shares the guest's memory, and the device's queues are served from there, without a copy.

      EXAMPLE
        vhost-swiftd blk --socket-path vm.sock --blk-file disk.img
        qemu-system-x86_64 ... \\
          -object memory-backend-memfd,id=mem,size=1G,share=on \\
          -machine memory-backend=mem \\
          -chardev socket,id=c0,path=vm.sock \\
          -device vhost-user-blk-pci,chardev=c0

      SIGNALS
        SIGTERM, SIGINT   finish what is under way (up to --drain-timeout),
                          remove the socket, exit 0; a second one: at once
        SIGHUP            look at the image's size again, and tell the guest;
                          serve: take up the limits in its file
        SIGUSR1           write the counters as JSON (see --stats)

      EXIT STATUS
        0   after SIGTERM, or at the end of an inherited connection
        2   wrong usage
        1   any other failure
      """,
    version: version,
    subcommands: [
      BlkCommand.self, NetCommand.self, RngCommand.self, SwitchCommand.self, ServeCommand.self,
      SelftestCommand.self,
    ])

  static let version = "0.1.0"

  static func main() {
    Crashes.leaveToTheKernel()
    let arguments = Invocation.arguments(CommandLine.arguments)
    if let capabilities = Capabilities.requested(by: arguments) {
      Output.line(capabilities)
      return
    }
    do {
      var command = try parseAsRoot(try Invocation.checked(arguments))
      try command.run()
    } catch let error as HostError {
      Output.failure("\(error)")
      Glibc.exit(1)
    } catch let failure as Failure {
      Output.failure(failure.message)
      Glibc.exit(failure.status)
    } catch {
      let status = exitCode(for: error)
      if status == .success {
        Output.line(fullMessage(for: error))
        Glibc.exit(0)
      }
      Output.failure("\(message(for: error)) (see --help)")
      Glibc.exit(2)
    }
  }

  /// Without a device there is nothing to serve.
  func run() throws {
    throw Failure.usage("no device is given: expected blk, net, rng, switch or serve (see --help)")
  }
}

/// What `--print-capabilities` answers, whatever else is on the command line.
enum Capabilities {
  static func requested(by arguments: [String]) -> String? {
    guard arguments.contains("--print-capabilities") else { return nil }
    switch arguments.first {
    case "blk": return #"{"type":"block","features":["read-only","blk-file"]}"#
    case "net": return #"{"type":"net"}"#
    case "rng": return #"{"type":"rng"}"#
    default: return nil
    }
  }
}

/// A failure that ends the program: one line, and the status.
struct Failure: Error {
  let message: String
  let status: Int32

  static func usage(_ message: String) -> Failure { Failure(message: message, status: 2) }
  static func run(_ message: String) -> Failure { Failure(message: message, status: 1) }
}

/// Standard output and error, without buffering of our own.
enum Output {
  static func line(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }

  /// One line on standard error, whatever is in the message: what a person gave is repeated in it.
  static func failure(_ message: String) {
    // The parser lists choices a line each.
    let lines = message.replacing("\n  - ", with: " ")
    let text = lines.unicodeScalars.reduce(into: "") { text, scalar in
      let isSign =
        scalar.properties.generalCategory != .control && scalar.properties.generalCategory != .format
      text += isSign ? String(scalar) : scalar.escaped(asASCII: false)
    }
    write("vhost-swiftd: \(text)\n", to: STDERR_FILENO)
  }

  /// `patience`: how long to wait for a reader, in milliseconds; -1 without a bound. What it does not take is lost.
  static func write(_ text: String, to descriptor: Int32, patience: Int32 = -1) {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      if patience >= 0, Poll.one(descriptor, .writable, milliseconds: patience).isEmpty { return }
      // A pipe that is writable takes a page without waiting.
      let part = patience >= 0 ? rest.prefix(4096) : rest
      // SAFETY: writes from the array's own storage.
      let count = unsafe part.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count <= 0, errno != EINTR { return }
      rest = rest.dropFirst(max(0, count))
    }
  }
}
