// A machine without a kernel of its own: firmware that finds what it boots on a vhost-user disk. Used on GuestThread.

import Foundation

/// QEMU's `pc` with one disk, from which its firmware boots. Its first serial port is the test's.
public final class FirmwareMachine {
  public let process: ChildProcess
  private let console: LineChannel
  private let folder: TemporaryFolder
  private let disk: BackendProcess

  /// Starts it; `firmware` are the arguments that choose one, none for SeaBIOS. The device is QEMU's default, the
  /// transitional one: a driver may take it for the legacy device.
  public init(booting disk: BackendProcess, firmware: [String] = []) throws {
    self.disk = disk
    folder = try TemporaryFolder()
    let accelerator = try Environment.accelerator.get()
    let (console, other) = try LineChannel.pair(name: "serial port")
    self.console = console
    let started = Result { [folder] in
      try ChildProcess(
        "qemu-system-x86_64",
        [
          "-accel", accelerator, "-cpu", accelerator == "kvm" ? "host" : "qemu64", "-m", "256M",
          "-object", "memory-backend-memfd,id=memory,size=256M,share=on", "-machine",
          "pc,memory-backend=memory",
          "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
          "-chardev", "socket,id=console,fd=3", "-serial", "chardev:console",
          "-chardev", "socket,id=disk,path=\(disk.socketPath)",
          "-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,bootindex=0",
        ] + firmware, log: folder.file("qemu.log"), descriptors: [other])
    }
    close(other)
    process = try started.get()
  }

  /// Reads the serial port up to and with `text`; what came before it.
  @discardableResult
  public func expect(_ text: String, within seconds: Double = 300) throws -> String {
    do {
      let bytes = try console.read(upTo: Array(text.utf8), by: Deadline(seconds: seconds)) { closed in
        if let exit = closed ? try process.waitExit(within: 10) : process.exit {
          throw HarnessError("QEMU ended with \(exit)")
        }
      }
      return String(decoding: bytes, as: UTF8.self)
    } catch {
      throw HarnessError(
        "'\(text)' is not said: \(error)", logs: [("QEMU", process.log), ("disk", disk.log)])
    }
  }

  public func type(_ text: String) throws { try console.write(text, by: Deadline(seconds: 60)) }

  /// Waits for the machine to switch itself off.
  public func waitOff(within seconds: Double = 120) throws {
    let exit = try process.waitExit(within: seconds)
    guard exit == .status(0) else {
      throw HarnessError("QEMU ended with \(exit)", logs: [("QEMU", process.log)])
    }
  }
}
