import java.io.StringReader;
import java.io.StringWriter;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Statement;
import java.util.Arrays;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyIn;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

/**
 * What pgjdbc does, against the server that the PG* variables name: one line for each thing tried, with nothing in
 * it that differs from run to run. tests/postgres/test_jdbc_peers.py compares a direct run with one through the
 * gateway. The first argument is the driver's preferQueryMode.
 */
public class PostgresClient {
    static String mode;

    static void say(String what, Object value) {
        System.out.println(what + ": " + value);
    }

    interface Act {
        void run() throws Exception;
    }

    static String refused(Act act) throws Exception {
        try {
            act.run();
            return "no error";
        } catch (BatchUpdateException error) {
            return Arrays.toString(error.getUpdateCounts()) + " " + error.getSQLState() + " " + error.getNextException().getMessage();
        } catch (PSQLException error) {
            ServerErrorMessage server = error.getServerErrorMessage();
            return error.getSQLState() + " " + (server == null ? error.getMessage() : server.getSeverity() + " " + server.getMessage()
                + " | " + server.getDetail() + " | " + server.getHint() + " | " + server.getPosition() + " | " + server.getConstraint());
        }
    }

    static Connection connected(String... more) throws Exception {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("sslmode", "disable");
        properties.setProperty("preferQueryMode", mode);
        for (int i = 0; i < more.length; i += 2) properties.setProperty(more[i], more[i + 1]);
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        return DriverManager.getConnection(url, properties);
    }

    static String rows(ResultSet result) throws SQLException {
        StringBuilder text = new StringBuilder();
        ResultSetMetaData meta = result.getMetaData();
        for (int i = 1; i <= meta.getColumnCount(); i++) text.append(meta.getColumnName(i)).append(' ').append(meta.getColumnTypeName(i)).append(' ');
        while (result.next()) {
            text.append('(');
            for (int i = 1; i <= meta.getColumnCount(); i++) text.append(result.getString(i)).append(i < meta.getColumnCount() ? "," : ")");
        }
        return text.toString();
    }

    static String query(Connection connection, String text, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(text)) {
            for (int i = 0; i < values.length; i++) statement.setObject(i + 1, values[i]);
            return rows(statement.executeQuery());
        }
    }

    static void queries(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            say("simple", rows(statement.executeQuery("SELECT 1 AS a, 'x' AS b, NULL::int AS c, ARRAY[1,2] AS d, '2026-01-02 03:04:05+00'::timestamptz AS e")));
            boolean isRows = statement.execute("CREATE TEMP TABLE item (id int PRIMARY KEY, name text NOT NULL); INSERT INTO item VALUES (1, 'one'), (2, 'two'); SELECT * FROM item; UPDATE item SET name = 'x' WHERE id = 2");
            StringBuilder several = new StringBuilder();
            for (;;) {
                if (isRows) several.append(rows(statement.getResultSet())).append(';');
                else if (statement.getUpdateCount() == -1) break;
                else several.append(statement.getUpdateCount()).append(';');
                isRows = statement.getMoreResults();
            }
            say("several", several);
            say("generated", statement.executeUpdate("INSERT INTO item VALUES (3, 'three')", new String[] {"id", "name"}) + rows(statement.getGeneratedKeys()));
            say("empty", statement.execute(""));
        }
        // Prepared by the server from the fifth run on, and binary from then on.
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int8 + 1 AS n, ?::text AS t, ?::uuid AS u, ?::numeric AS d, ?::date AS day")) {
            for (int i = 0; i < 12; i++) {
                statement.setLong(1, i);
                statement.setString(2, "v" + i);
                statement.setObject(3, java.util.UUID.fromString("00000000-0000-0000-0000-00000000000" + i % 10));
                statement.setBigDecimal(4, new java.math.BigDecimal("1.5"));
                statement.setDate(5, java.sql.Date.valueOf("2026-02-03"));
                say("prepared", rows(statement.executeQuery()));
            }
        }
        if (mode.equals("simple")) return; // pgjdbc writes no bytea and describes no parameters in this mode
        byte[] large = new byte[2_000_000];
        Arrays.fill(large, (byte) 7);
        try (PreparedStatement statement = connection.prepareStatement("SELECT length(?::bytea), ?::bytea")) {
            statement.setBytes(1, large);
            statement.setBytes(2, large);
            ResultSet result = statement.executeQuery();
            result.next();
            say("large", result.getInt(1) + " " + Arrays.equals(large, result.getBytes(2)));
        }
        try (PreparedStatement statement = connection.prepareStatement("SELECT id, name FROM item WHERE id = ?")) {
            say("parameters", statement.getParameterMetaData().getParameterTypeName(1) + " " + statement.getMetaData().getColumnTypeName(2));
        }
        try (ResultSet tables = connection.getMetaData().getColumns(null, "pg_catalog", "pg_am", "%")) {
            int count = 0;
            while (tables.next()) count++;
            say("metadata", count);
        }
    }

    static void errors(Connection connection) throws Exception {
        say("syntax", refused(() -> query(connection, "SELEC 1")));
        say("unknown", refused(() -> query(connection, "SELECT nothing FROM item")));
        say("duplicate", refused(() -> connection.createStatement().executeUpdate("INSERT INTO item VALUES (1, 'again')")));
        say("parameter", refused(() -> query(connection, "SELECT ?::int", "x")));
        connection.setAutoCommit(false);
        connection.createStatement().executeUpdate("INSERT INTO item VALUES (10, 'ten')");
        say("fails", refused(() -> query(connection, "SELECT 1/0")));
        say("aborted", refused(() -> query(connection, "SELECT 1")));
        connection.rollback();
        connection.createStatement().executeUpdate("INSERT INTO item VALUES (11, 'eleven')");
        java.sql.Savepoint point = connection.setSavepoint();
        say("in a savepoint", refused(() -> query(connection, "SELECT 1/0")));
        connection.rollback(point);
        connection.commit();
        connection.setAutoCommit(true);
        say("committed", query(connection, "SELECT id FROM item ORDER BY id"));
        try (Statement statement = connection.createStatement()) {
            statement.execute("DO $$ BEGIN RAISE NOTICE 'one %', 1; RAISE WARNING 'two'; END $$");
            StringBuilder text = new StringBuilder();
            for (SQLWarning warning = statement.getWarnings(); warning != null; warning = warning.getNextWarning()) text.append(warning.getSQLState()).append(warning.getMessage()).append(';');
            say("notices", text);
        }
    }

    static void batches(Connection connection) throws Exception {
        connection.createStatement().execute("CREATE TEMP TABLE batch (id int PRIMARY KEY, name text)");
        try (PreparedStatement statement = connection.prepareStatement("INSERT INTO batch VALUES (?, ?)")) {
            for (int i = 0; i < 3000; i++) {
                statement.setInt(1, i);
                statement.setString(2, "name " + i);
                statement.addBatch();
            }
            say("batch", Arrays.stream(statement.executeBatch()).sum());
            for (int i = 2990; i < 3010; i++) {
                statement.setInt(1, i);
                statement.setString(2, "again");
                statement.addBatch();
            }
            say("batch, fails", refused(statement::executeBatch));
            statement.clearBatch();
            connection.setAutoCommit(false);
            for (int i = 4000; i < 7000; i++) {
                statement.setInt(1, i);
                statement.setString(2, "more");
                statement.addBatch();
            }
            say("batch, in a transaction", Arrays.stream(statement.executeBatch()).sum());
            connection.commit();
            connection.setAutoCommit(true);
        }
        try (Statement statement = connection.createStatement()) {
            for (int i = 0; i < 20; i++) statement.addBatch("UPDATE batch SET name = 'b" + i + "' WHERE id = " + i);
            statement.addBatch("DELETE FROM batch WHERE id > 5000");
            say("batch of texts", Arrays.toString(statement.executeBatch()));
        }
        try (PreparedStatement statement = connection.prepareStatement("INSERT INTO batch VALUES (?, 'k') RETURNING id", Statement.RETURN_GENERATED_KEYS)) {
            for (int i = 7000; i < 7005; i++) {
                statement.setInt(1, i);
                statement.addBatch();
            }
            statement.executeBatch();
            say("batch, keys", rows(statement.getGeneratedKeys()));
        }
        say("batched", query(connection, "SELECT count(*), sum(id) FROM batch"));
    }

    static void cursors(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        for (int run = 0; run < 7; run++) {
            try (PreparedStatement statement = connection.prepareStatement("SELECT i, repeat('x', 20) AS t FROM generate_series(1, ?) AS i")) {
                statement.setFetchSize(100);
                statement.setInt(1, 1234);
                ResultSet result = statement.executeQuery();
                long sum = 0;
                while (result.next()) sum += result.getInt(1);
                say("fetch size", sum);
                statement.setInt(1, 100000);
                result = statement.executeQuery();
                result.next();
                result.close();
            }
        }
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(10);
            int[] count = {0};
            say("fetch size, fails", refused(() -> {
                ResultSet result = statement.executeQuery("SELECT 1/(25 - i) FROM generate_series(1, 100) AS i");
                while (result.next()) count[0]++;
            }) + " " + count[0]);
        }
        connection.rollback();
        connection.setAutoCommit(true);
    }

    static void copies(Connection connection) throws Exception {
        connection.createStatement().execute("CREATE TEMP TABLE copied (i int, t text)");
        CopyManager manager = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder lines = new StringBuilder();
        for (int i = 0; i < 20000; i++) lines.append(i).append("\tline ").append(i).append('\n');
        say("copy in", manager.copyIn("COPY copied FROM STDIN", new StringReader(lines.toString())));
        StringWriter out = new StringWriter();
        say("copy out", manager.copyOut("COPY (SELECT * FROM copied ORDER BY i) TO STDOUT", out) + " " + out.toString().equals(lines.toString()));
        say("copy in, bad data", refused(() -> manager.copyIn("COPY copied FROM STDIN", new StringReader("1\tone\nx\ttwo\n"))));
        CopyIn given = manager.copyIn("COPY copied FROM STDIN");
        given.writeToCopy("1\tone\n".getBytes(), 0, 6);
        given.cancelCopy();
        say("copy in, given up", given.isActive());
        say("copy of nothing", refused(() -> manager.copyIn("COPY nothing FROM STDIN", new StringReader(""))));
        say("copied", query(connection, "SELECT count(*) FROM copied"));

        connection.setAutoCommit(false);
        LargeObjectManager objects = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long oid = objects.createLO();
        LargeObject object = objects.open(oid);
        object.write(new byte[300_000]);
        object.seek(299_990);
        say("large object", object.read(100).length + " " + object.size());
        object.close();
        objects.delete(oid);
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void others(Connection connection) throws Exception {
        try (Connection listener = connected("ApplicationName", "jdbc peers", "options", "-c search_path=pg_catalog"); Statement statement = listener.createStatement()) {
            say("settings", query(listener, "SELECT current_setting('application_name'), current_setting('search_path')"));
            statement.execute("LISTEN news");
            connection.createStatement().execute("NOTIFY news, 'told'");
            int pid = connection.unwrap(PGConnection.class).getBackendPID();
            PGNotification[] heard = listener.unwrap(PGConnection.class).getNotifications(10_000);
            say("heard", heard.length + heard[0].getName() + heard[0].getParameter() + (heard[0].getPID() == pid));
            say("own pid", query(connection, "SELECT pg_backend_pid() = ?", pid));

            CountDownLatch done = new CountDownLatch(1);
            String[] said = {null};
            Thread sleeper = new Thread(() -> {
                try {
                    said[0] = refused(() -> statement.execute("SELECT pg_sleep(60)"));
                } catch (Exception error) {
                    said[0] = error.toString();
                }
                done.countDown();
            });
            sleeper.start();
            int sleeping = listener.unwrap(PGConnection.class).getBackendPID();
            while (query(connection, "SELECT 1 FROM pg_stat_activity WHERE pid = ? AND state = 'active' AND query LIKE '%pg_sleep%'", sleeping).indexOf('(') < 0) Thread.onSpinWait();
            statement.cancel();
            done.await();
            say("cancelled", said[0]);
            say("after cancel", query(listener, "SELECT 1 AS one"));
            statement.setQueryTimeout(1);
            say("query timeout", refused(() -> statement.execute("SELECT pg_sleep(60)")));
            statement.setQueryTimeout(0);
            query(connection, "SELECT pg_terminate_backend(?)", sleeping);
            say("terminated", refused(() -> statement.execute("SELECT 1")).startsWith("57P01"));
        }
        say("valid", connection.isValid(5));
    }

    public static void main(String[] arguments) throws Exception {
        mode = arguments[0];
        try (Connection connection = connected()) {
            queries(connection);
            errors(connection);
            batches(connection);
            cursors(connection);
            copies(connection);
            others(connection);
        }
        say("end", "true");
    }
}
